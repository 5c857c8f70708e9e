//! Tests that run once more as an ordinary user, when the lab itself has the machine's privileges.

use crate::lab::Lab;

/// An ordinary user that nobody else is.
const USER: &str = "50011";

impl Lab {
    /// Runs a test of this binary again as an ordinary user, in a mount namespace where everybody may open /dev/net/tun and our programs
    /// can be reached, wherever the sources are. The test prints `done as UID` at its end.
    ///
    /// # Panics
    /// When it fails, or hasn't run.
    #[track_caller]
    pub fn again_as_user(&self, test: &str) {
        let node = self.host("machine");
        let dir = self.dir();
        let dir = dir.to_str().expect("UTF-8");
        let binary = std::env::current_exe().expect("path of the test binary");
        let target = binary.parent().and_then(std::path::Path::parent);
        let target = target.and_then(std::path::Path::to_str).expect("UTF-8");
        let name = binary.file_name().and_then(std::ffi::OsStr::to_str);
        let name = name.expect("UTF-8");
        let bin = std::env::var("VSWITCH_BIN_DIR").unwrap_or_else(|_| target.to_owned());
        node.ok(&[
        "sh",
        "-ec",
        "cd \"$0\"; chmod 755 .; mkdir target bin; mount --bind \"$1\" target; mount --bind \"$2\" bin
         mknod -m 666 tun c 10 200; chmod 666 tun; mount --bind tun /dev/net/tun",
        dir,
        target,
        &bin,
    ]);
        let argv = [
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
            "--pdeathsig",
            "KILL",
            "env",
            "-u",
            "VSWITCH_SKIPS",
            &format!("VSWITCH_BIN_DIR={dir}/bin"),
            &format!("{dir}/target/deps/{name}"),
            "--exact",
            test,
            "--nocapture",
        ];
        let output = node.run_for(&argv, std::time::Duration::from_secs(120));
        assert!(output.success(), "{output}");
        assert!(
            output.stdout.contains(&format!("done as {USER}")),
            "{output}"
        );
    }
}
