//! The daemon, its API and its command line, on real namespaces.

mod access;
mod attach;
mod capture;
mod command_line;
mod demo;
mod life;
mod ports;
mod readme;
mod receive;
mod topology;
