//! The `plyfs` program: everything is in [`plyfs::cli`].

fn main() -> std::process::ExitCode {
    plyfs::cli::main()
}
