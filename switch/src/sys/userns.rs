//! User namespaces (user_namespaces(7)): which of them has a say in another namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// `_IO(0xb7, 0x1)` of include/uapi/linux/nsfs.h, Linux 4.9.
const NS_GET_USERNS: u8 = 0x1;
nix::ioctl_none_bad!(owner, nix::request_code_none!(0xb7, NS_GET_USERNS));

/// The user namespace whose capabilities count in a namespace. Errors: EPERM when that is none of ours, but above.
fn owner_of(namespace: &File) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    let fd = unsafe { owner(namespace.as_fd().as_raw_fd()) }?;
    // SAFETY: a non-negative answer is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the capabilities that this process has count in its network namespace.
pub fn rules_own_network() -> io::Result<bool> {
    let network = File::open("/proc/self/ns/net")?;
    let owner = match owner_of(&network) {
        Ok(owner) => File::from(owner).metadata()?,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        Err(e) => return Err(e),
    };
    let own = std::fs::metadata("/proc/self/ns/user")?;
    Ok((owner.dev(), owner.ino()) == (own.dev(), own.ino()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_known() {
        assert!(super::rules_own_network().is_ok());
    }
}
