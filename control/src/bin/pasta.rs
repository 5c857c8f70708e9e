//! In the place of pasta.

fn main() -> std::process::ExitCode {
    vswitch_control::integrations::pasta::main()
}
