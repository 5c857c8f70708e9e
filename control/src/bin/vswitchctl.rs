//! The command line.

fn main() -> std::process::ExitCode {
    vswitch_control::cli::main()
}
