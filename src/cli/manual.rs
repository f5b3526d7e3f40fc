//! Holds the manual against the command line: each `tollkeeper …` that the pages show is a command, with options that it
//! has. What the commands do is tested elsewhere.

use super::Cli;
use clap::{Command, CommandFactory};
use std::fs;
use std::path::{Path, PathBuf};

/// The pages that users read.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let mut pages: Vec<PathBuf> = docs.map(|entry| entry.unwrap().path()).collect();
    pages.extend(
        [
            "README.md",
            "CHANGELOG.md",
            "conf/tollkeeper.yaml",
            "contrib/debian/config.yaml",
            "contrib/docker/config.yaml",
            "contrib/compose/edge.yaml",
        ]
        .map(|page| root.join(page)),
    );
    pages
}

/// What stands behind `tollkeeper ` where that begins a line, a word in backticks, or follows `$ `, `$(`, `docker exec NAME`
/// or `sudo`: up to the first thing that is the shell's, or prose.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in page.lines() {
        for (at, _) in line.match_indices("tollkeeper ") {
            let (before, after) = line.split_at(at);
            let before = before.trim_start_matches(['#', ' ', '$']);
            let begins = before.is_empty()
                || ["`", "$ ", "$(", "| ", "sudo "]
                    .iter()
                    .any(|s| before.ends_with(s))
                || before.ends_with('/')
                || before.contains("docker exec ") && before.ends_with(' ');
            if begins {
                let command = after.split(['`', '|', '>', '#', ')', '(', ';']).next().unwrap();
                let command = command.split("  ").next().unwrap();
                found.push(command.trim_end_matches([',', '.', ':']).to_string());
            }
        }
    }
    found
}

/// `Err` says what of it there is not.
fn exists(command: &str, cli: &Command) -> Result<(), String> {
    let mut at = cli;
    let mut words = command.split_whitespace().skip(1);
    let mut word = words.next();
    while let (true, Some(name)) = (at.has_subcommands(), word) {
        if !name.chars().all(|c| c.is_ascii_lowercase() || c == '-') || name.starts_with('-') {
            break;
        }
        match at.find_subcommand(name) {
            Some(sub) => at = sub,
            // `tollkeeper log` shows, and `tollkeeper log level` changes; a positional argument is neither.
            None => return Err(format!("{} has no command {name}", at.get_name())),
        }
        word = words.next();
    }
    let options = word.into_iter().chain(words).filter_map(|word| {
        let option = word.trim_matches(['[', ']', ',', '"', '\'']).strip_prefix("--")?;
        Some(option.split('=').next().unwrap_or_default().to_string())
    });
    for option in options.filter(|option| !option.is_empty()) {
        let known = |command: &Command| {
            command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(option.as_str()))
        };
        if !known(at) && !["help", "version"].contains(&option.as_str()) {
            return Err(format!("{} has no option --{option}", at.get_name()));
        }
    }
    Ok(())
}

#[test]
fn each_command_of_the_manual_exists() {
    let mut cli = Cli::command();
    cli.build();
    let mut looked = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        for command in commands(&fs::read_to_string(&page).unwrap()) {
            looked += 1;
            if let Err(why) = exists(&command, &cli) {
                wrong.push(format!("{}: {command}: {why}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(looked > 60, "only {looked} commands were found");
}

#[test]
fn what_does_not_exist_is_found() {
    let mut cli = Cli::command();
    cli.build();
    for (line, good) in [
        ("$ tollkeeper key create --name a --budget 5 # x", true),
        ("see `tollkeeper status`, or not", true),
        ("KEY=$(tollkeeper key create --name ci --quiet)", true),
        ("tollkeeper log level debug       more of it", true),
        ("tollkeeper --model x/y [--api_base URL]", true),
        ("tollkeeper keys list", false),
        ("tollkeeper key create --title a", false),
    ] {
        let found = commands(line);
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        assert_eq!(exists(&found[0], &cli).is_ok(), good, "{line}: {found:?}");
    }
}
