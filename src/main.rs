//! The binary: Tollkeeper with its built-in filters.

/// jemalloc gives memory of finished streams back and costs less per call than the system's.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    tollkeeper::run(filters::builtin::registry())
}
