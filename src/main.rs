fn main() -> std::process::ExitCode {
    heatfs::cli::main()
}
