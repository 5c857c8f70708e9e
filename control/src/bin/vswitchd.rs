//! The daemon.

fn main() -> std::process::ExitCode {
    vswitch_control::daemon_cli::main()
}
