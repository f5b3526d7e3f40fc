//! Puts the environment's values into the tree: `os.environ/NAME`, `${NAME}`, `${NAME:-default}`,
//! and the section `environment_variables:`.

use super::dotenv::is_name;
use super::load::Env;
use super::node::{Node, Origin, Scalar, Value};
use super::report::Notes;
use super::text::shown;

/// `environment_variables:` fills in what the environment does not hold.
pub(super) fn environment_section(root: &mut Node, env: &mut Env, notes: &Notes) {
    let Value::Map(entries) = &mut root.value else {
        return;
    };
    let Some(section) = entries.iter_mut().find(|e| e.key == "environment_variables") else {
        return;
    };
    let Value::Map(variables) = &mut section.value.value else {
        if !section.value.is_null() {
            drop(
                notes
                    .error("type", "`environment_variables` must be a mapping")
                    .at(section.key_at),
            );
        }
        return;
    };
    for variable in variables {
        let mut path = vec!["environment_variables".to_owned(), variable.key.clone()];
        fill_in(&mut variable.value, env, notes, &mut path);
        match variable.value.scalar() {
            Some(scalar) if !scalar.is_null() => env.fill_in(variable.key.clone(), scalar.text.clone()),
            Some(_) => {}
            None => {
                let message = format!(
                    "`{}` must be text, not {}",
                    shown(&variable.key),
                    variable.value.kind()
                );
                drop(
                    notes
                        .error("type", message)
                        .at(variable.value.at)
                        .path("environment_variables"),
                );
            }
        }
    }
}

/// Replaces `os.environ/NAME` and `${NAME}` everywhere below.
pub(super) fn fill_in(node: &mut Node, env: &Env, notes: &Notes, path: &mut Vec<String>) {
    match &mut node.value {
        Value::Seq(items) => items.iter_mut().for_each(|item| fill_in(item, env, notes, path)),
        Value::Map(entries) => {
            for entry in entries {
                if path.is_empty() && entry.key == "environment_variables" {
                    continue; // done already, and a variable's own name must not be asked for again
                }
                path.push(entry.key.clone());
                fill_in(&mut entry.value, env, notes, path);
                path.pop();
            }
        }
        Value::Scalar(scalar) => {
            let Some(missing) = substitute(scalar, env) else {
                return;
            };
            // Whoever reads these says how bad it is; for the rest the field just stays empty.
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match path.as_slice() {
                [
                    "model_list",
                    "litellm_params",
                    "api_key" | "api_base" | "base_url",
                ]
                | ["general_settings", "master_key" | "salt_key" | "database_url"]
                | ["general_settings", "pass_through_endpoints", "target"] => {
                    scalar.origin = Origin::Unset(missing);
                    return;
                }
                _ => {}
            }
            let message = format!("environment variable {} is not set", shown(&missing));
            let own = path.first() == Some(&"tollkeeper");
            let draft = if own {
                notes.error("env", message)
            } else {
                notes.warning("env", message)
            };
            let field = path.last().copied().unwrap_or_default();
            let left = if own { "" } else { ": the field counts as empty" };
            drop(
                draft
                    .at(node.at)
                    .label(format!("needed by `{}`{left}", shown(field)))
                    .path(&shown_path(&path)),
            );
            scalar.origin = Origin::Unset(missing);
        }
    }
}

fn shown_path(path: &[&str]) -> String {
    let above = path.split_last().map(|(_, above)| above).unwrap_or_default();
    above.iter().map(|key| shown(key)).collect::<Vec<_>>().join(" → ")
}

/// Puts the environment's values into one text. Returns the first variable that is missing.
fn substitute(scalar: &mut Scalar, env: &Env) -> Option<String> {
    if scalar.origin != Origin::File {
        return None;
    }
    if let Some(name) = scalar.text.strip_prefix("os.environ/") {
        return match env.text(name) {
            Some(value) => {
                *scalar = Scalar {
                    text: value,
                    plain: true,
                    origin: Origin::Env,
                };
                None
            }
            None => Some(name.to_owned()),
        };
    }
    // LiteLLM's headers hold them behind a word, as in `Bearer os.environ/NAME`.
    if let Some((before, after)) = scalar.text.split_once(" os.environ/") {
        let end = after
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        let (name, rest) = after.split_at(end);
        return match env.text(name) {
            Some(value) => {
                let text = format!("{before} {value}{rest}");
                *scalar = Scalar {
                    text,
                    plain: false,
                    origin: Origin::Env,
                };
                None
            }
            None => Some(name.to_owned()),
        };
    }
    if !scalar.text.contains("${") {
        return None;
    }
    let mut out = String::new();
    let mut rest = scalar.text.as_str();
    let mut replaced = false;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            // `$${` is a literal `${`.
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        let inner = after.split_once('}');
        let parts = inner.map(|(inner, tail)| {
            let (name, default) = inner
                .split_once(":-")
                .map_or((inner, None), |(name, default)| (name, Some(default)));
            (name, default, tail)
        });
        match parts.filter(|(name, _, _)| is_name(name)) {
            Some((name, default, tail)) => {
                let Some(value) = env.text(name).or_else(|| default.map(str::to_owned)) else {
                    return Some(name.to_owned());
                };
                out.push_str(before);
                out.push_str(&value);
                replaced = true;
                rest = tail;
            }
            // Not one of ours, such as a shell's `${x%y}` in a prompt: it stays as it is.
            None => {
                out.push_str(before);
                out.push_str("${");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    let origin = if replaced { Origin::Env } else { Origin::File };
    *scalar = Scalar {
        text: out,
        plain: scalar.plain,
        origin,
    };
    None
}
