//! What packages bring beside the binary, made from the command line's own description: man pages and
//! completions of shells.

use super::client::Failure;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct ManArgs {
    /// Write a page for each command into this directory, in place of the first one to stdout.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// `tollkeeper man | man -l -` shows the page.
pub fn man<C: CommandFactory>(args: &ManArgs) -> Result<(), Failure> {
    let command = C::command();
    match &args.dir {
        Some(dir) => pages(command, dir)
            .map_err(|e| Failure::failed(format!("man pages cannot be written to {}: {e}", dir.display()))),
        None => out(|to| clap_mangen::Man::new(command).render(to)),
    }
}

fn pages(command: Command, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)
}

/// For bash: `source <(tollkeeper completions bash)`.
pub fn completions<C: CommandFactory>(shell: Shell) -> Result<(), Failure> {
    out(|to| {
        clap_complete::generate(shell, &mut C::command(), "tollkeeper", to);
        Ok(())
    })
}

/// Made whole first: who reads it may have read enough, and the makers panic on a closed pipe.
fn out(make: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    let written = make(&mut bytes).and_then(|()| {
        let mut to = io::stdout().lock();
        to.write_all(&bytes).and_then(|()| to.flush())
    });
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Failure::closed()),
        Err(e) => Err(Failure::failed(format!("stdout cannot be written: {e}"))),
        Ok(()) => Ok(()),
    }
}
