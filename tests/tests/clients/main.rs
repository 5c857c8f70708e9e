//! Container engines from Debian as an ordinary user, with our programs where slirp4netns and pasta stand.

mod attach;
mod control_socket;
mod docker;
mod flags;
mod isolation;
mod loopback;
mod pasta;
mod podman;
mod rootlesskit;
mod site;
mod slirp4netns;
