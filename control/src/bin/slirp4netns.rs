//! In the place of slirp4netns.

fn main() -> std::process::ExitCode {
    vswitch_control::integrations::slirp4netns::main()
}
