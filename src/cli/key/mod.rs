//! `tollkeeper key …`: virtual keys of a running gateway, made, looked at, changed and taken away.
//!
//! A new key is alone on its line of stdout, once; all else that is said goes to stderr. What a key
//! looks like is in [`view`], which key is meant in [`name`], what is asked for in [`fields`], whether its models are
//! there in [`known`].

mod fields;
mod known;
pub mod name;
mod view;

use super::client::{Failure, Gateway};
use super::reach::Reach;
use super::show::{self, GREEN, YELLOW, clean, put, say};
use crate::conf::Env;
use clap::{Args, Subcommand};
use fields::Fields;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};

#[derive(Args)]
pub struct KeyArgs {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: KeyCommand,
}

/// How a key is named. Never by itself: others of the machine can read a command line.
const NAMED: &str = "The key's alias, its hash or the start of it; - reads sk-... from stdin";

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key. It is shown once, on stdout, and never again.
    #[command(
        after_help = "Examples:\n  tollkeeper key create --name app --models small,claude --budget 50 --duration 30d\n  KEY=$(tollkeeper key create --name ci --quiet)\n  pass my-key | tollkeeper key create --name mine --key-stdin"
    )]
    Create {
        #[command(flatten)]
        fields: Fields,
        /// Read a key of your own from stdin: sk- and 16 to 1024 characters.
        #[arg(long)]
        key_stdin: bool,
        /// Print the key and nothing else.
        #[arg(short, long)]
        quiet: bool,
        /// Print the API's answer.
        #[arg(long)]
        json: bool,
    },
    /// All keys, newest first.
    List {
        /// Only this user's.
        #[arg(long, value_name = "ID")]
        user: Option<String>,
        /// Only this team's.
        #[arg(long, value_name = "ID")]
        team: Option<String>,
        /// Print the API's objects as a list.
        #[arg(long)]
        json: bool,
    },
    /// One key in full; without a name the one that TOLLKEEPER_API_KEY holds.
    Info {
        #[arg(value_name = "NAME|HASH|-", help = NAMED)]
        key: Option<String>,
        /// Print the API's object.
        #[arg(long)]
        json: bool,
    },
    /// Change a key; what is not named stays. `none` takes a limit away.
    #[command(
        after_help = "Examples:\n  tollkeeper key update app --budget 100\n  tollkeeper key update app --duration none --models all"
    )]
    Update {
        #[arg(value_name = "NAME|HASH|-", help = NAMED)]
        key: String,
        #[command(flatten)]
        fields: Fields,
        /// Print the API's answer.
        #[arg(long)]
        json: bool,
    },
    /// Refuse a key's calls until it is unblocked.
    Block {
        #[arg(value_name = "NAME|HASH|-", help = NAMED)]
        key: String,
        /// Print the API's answer.
        #[arg(long)]
        json: bool,
    },
    /// Let a blocked key call again.
    Unblock {
        #[arg(value_name = "NAME|HASH|-", help = NAMED)]
        key: String,
        /// Print the API's answer.
        #[arg(long)]
        json: bool,
    },
    /// Give a key a new secret; name, budget and spend stay.
    Rotate {
        #[arg(value_name = "NAME|HASH|-", help = NAMED)]
        key: String,
        /// How long the old secret works beside the new one, such as 1h.
        #[arg(long, value_name = "DURATION")]
        grace: Option<String>,
        /// Print the new key and nothing else.
        #[arg(short, long)]
        quiet: bool,
        /// Print the API's answer.
        #[arg(long)]
        json: bool,
    },
    /// Take keys away for good. Their calls stay in the ledger.
    Delete {
        #[arg(value_name = "NAME|HASH|-", required = true, help = NAMED)]
        keys: Vec<String>,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Print the API's answer.
        #[arg(long)]
        json: bool,
    },
    /// The master key of the gateway of this config.
    ShowMaster,
}

/// Does what was asked.
pub async fn run(args: KeyArgs, env: &Env) -> Result<(), Failure> {
    let reach = &args.reach;
    match args.command {
        KeyCommand::ShowMaster => {
            let (key, from) = reach.places(env).master()?;
            put(key.expose())?;
            say(format_args!("from {}", clean(&from)));
            Ok(())
        }
        KeyCommand::Create {
            fields,
            key_stdin,
            quiet,
            json,
        } => {
            let mut body = fields.create()?;
            let gateway = reach.gateway(env)?;
            if key_stdin {
                body.insert("key".into(), json!(from_stdin()?));
            }
            let made = gateway.post("/key/generate", &Value::Object(body)).await?;
            hand_over(&gateway, &made, "Created", quiet, json)?;
            known::warn(&gateway, &fields.models()).await;
            Ok(())
        }
        KeyCommand::List { user, team, json } => {
            let narrowed = user.is_some() || team.is_some();
            let filter = name::Filter { user, team };
            let keys = name::all(&reach.gateway(env)?, &filter).await?;
            view::list(&keys, narrowed, json)
        }
        KeyCommand::Info { key, json } => {
            let gateway = reach.gateway(env)?;
            let row = match key {
                Some(name) => name::find(&gateway, &name).await?,
                None => gateway.get("/key/info", &[]).await?.json,
            };
            if json {
                return put(show::json(&row));
            }
            view::info(&row)
        }
        KeyCommand::Update { key, fields, json } => {
            let gateway = reach.gateway(env)?;
            let row = name::find(&gateway, &key).await?;
            let mut body = fields.update(&row)?;
            body.insert("key".into(), json!(name::hash(&row)?));
            let row = gateway.post("/key/update", &Value::Object(body)).await?;
            if json {
                return put(show::json(&row));
            }
            say(format_args!("{GREEN}✓{GREEN:#} Changed {}", view::title(&row)));
            say(format_args!("  {}", view::terms(&row)));
            known::warn(&gateway, &fields.models()).await;
            Ok(())
        }
        KeyCommand::Block { key, json } => {
            switch(&reach.gateway(env)?, &key, "/key/block", "Blocked", json).await
        }
        KeyCommand::Unblock { key, json } => {
            switch(&reach.gateway(env)?, &key, "/key/unblock", "Unblocked", json).await
        }
        KeyCommand::Rotate {
            key,
            grace,
            quiet,
            json,
        } => {
            let gateway = reach.gateway(env)?;
            let row = name::find(&gateway, &key).await?;
            let mut body = json!({"key": name::hash(&row)?});
            if let (Some(grace), Value::Object(body)) = (&grace, &mut body) {
                body.insert("grace_period".into(), json!(grace));
            }
            let made = gateway.post("/key/regenerate", &body).await?;
            hand_over(&gateway, &made, "Rotated", quiet, json)?;
            if !quiet && !json {
                match grace {
                    Some(grace) => say(format_args!("The old secret works for {} more.", clean(&grace))),
                    None => say("The old secret does not work any more."),
                }
            }
            Ok(())
        }
        KeyCommand::Delete { keys, yes, json } => delete(&reach.gateway(env)?, &keys, yes, json).await,
    }
}

/// Shows a new key: on stdout the key alone, or the whole answer.
fn hand_over(gateway: &Gateway, made: &Value, what: &str, quiet: bool, json: bool) -> Result<(), Failure> {
    if json {
        return put(show::json(made));
    }
    let secret = made.get("key").and_then(Value::as_str).ok_or_else(|| {
        Failure::failed("the gateway's answer holds no key; is it a gateway of another kind?")
    })?;
    if quiet {
        return put(clean(secret));
    }
    say(format_args!("{GREEN}✓{GREEN:#} {what} {}", view::title(made)));
    put(clean(secret))?;
    say("  ↑ copy it now: it is not stored, and never shown again");
    say(format_args!("  {}", view::terms(made)));
    let name = view::field(made, "key_alias").map(quoted);
    let watch = name.unwrap_or_else(|| {
        view::field(made, "token")
            .unwrap_or_default()
            .chars()
            .take(12)
            .collect()
    });
    say(format_args!(
        "Use it:  export OPENAI_BASE_URL={} OPENAI_API_KEY=sk-…",
        gateway.openai_base()
    ));
    say(format_args!("Watch:   tollkeeper logs -f --key {watch}"));
    Ok(())
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@:".contains(c);
    match text.chars().all(plain) && !text.starts_with('-') {
        true => text.into(),
        false => format!("'{}'", clean(text).replace('\'', "'\\''")),
    }
}

async fn switch(gateway: &Gateway, key: &str, path: &str, what: &str, json: bool) -> Result<(), Failure> {
    let row = name::find(gateway, key).await?;
    let row = gateway.post(path, &json!({"key": name::hash(&row)?})).await?;
    if json {
        return put(show::json(&row));
    }
    say(format_args!("{GREEN}✓{GREEN:#} {what} {}", view::title(&row)));
    Ok(())
}

async fn delete(gateway: &Gateway, keys: &[String], yes: bool, json: bool) -> Result<(), Failure> {
    let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !yes && !asks {
        return Err(Failure::usage(
            "a key that is deleted is gone for good: say --yes, since nobody can be asked here",
        ));
    }
    let mut rows = Vec::new();
    for key in keys {
        let row = name::find(gateway, key).await?;
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    if !yes {
        for row in &rows {
            say(format_args!("{}, {}", view::title(row), view::spent(row)));
        }
        let _ = write!(
            anstream::stderr().lock(),
            "Delete {}? [y/N] ",
            match rows.len() {
                1 => "this key".to_string(),
                n => format!("these {n} keys"),
            }
        );
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.is_err() || !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Err(Failure::failed("nothing was deleted"));
        }
    }
    let hashes = rows.iter().map(name::hash).collect::<Result<Vec<_>, _>>()?;
    let answer = gateway.post("/key/delete", &json!({"keys": hashes})).await?;
    if json {
        return put(show::json(&answer));
    }
    let gone = answer.get("deleted_keys").and_then(Value::as_array);
    for (row, hash) in rows.iter().zip(hashes) {
        match gone.is_some_and(|g| g.iter().any(|h| h.as_str() == Some(hash))) {
            true => say(format_args!("{GREEN}✓{GREEN:#} Deleted {}", view::title(row))),
            false => say(format_args!(
                "{YELLOW}!{YELLOW:#} {} was gone already",
                view::title(row)
            )),
        }
    }
    Ok(())
}

/// A key from stdin: one line, within bounds.
fn from_stdin() -> Result<String, Failure> {
    const MOST: u64 = 4096;
    if std::io::stdin().is_terminal() {
        say("Paste the key, then press Enter:");
    }
    let mut line = String::new();
    let mut stdin = std::io::Read::take(std::io::stdin().lock(), MOST);
    stdin
        .read_line(&mut line)
        .map_err(|e| Failure::failed(format!("stdin cannot be read: {e}")))?;
    match line.trim() {
        key if key.starts_with("sk-") => Ok(key.to_string()),
        "" => Err(Failure::usage("a key was to come on stdin, and nothing came")),
        _ => Err(Failure::usage("what came on stdin does not start with sk-")),
    }
}
