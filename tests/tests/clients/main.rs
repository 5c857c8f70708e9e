//! Container engines from Debian as an ordinary user, with our programs where slirp4netns stands.

mod docker;
mod podman;
mod rootlesskit;
mod site;
mod slirp4netns;
