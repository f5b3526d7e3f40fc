//! `tollkeeper check`: says everything that is wrong with a config, and whether it would start.
//!
//! The report is what was asked for, so it goes to stdout in every format.

use std::io::Write;
use std::path::PathBuf;

use super::show::counted;
use crate::conf::load::Env;
use crate::conf::{Conf, EXIT_CONFIG, Problem, Report, Severity, load};
use crate::snapshot::Snapshot;
use filters::contract::Registry;
use filters::contract::ports::Ports;

/// How the report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people: each line with carets under what is wrong.
    #[default]
    Text,
    /// One object for programs.
    Json,
    /// Annotations for GitHub's workflows.
    Github,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "github" => Ok(Self::Github),
            _ => Err("the formats are text, json and github".into()),
        }
    }
}

/// Checks the config at `file`, or the first one found, and prints the report on stdout. With
/// `strict` a warning counts as an error. Returns 0, 78 when the config cannot be used, or 1 when
/// the report cannot be written.
pub fn run(file: Option<PathBuf>, format: Format, strict: bool, env: &Env, registry: &Registry) -> i32 {
    // `anstream` takes the colours out unless stdout is a terminal, and follows NO_COLOR.
    let mut out = anstream::stdout().lock();
    report(file, format, strict, env, registry, &mut out).unwrap_or(1)
}

/// The same into any writer, with ANSI colours in the text format.
pub fn report(
    file: Option<PathBuf>,
    format: Format,
    strict: bool,
    env: &Env,
    registry: &Registry,
    out: &mut impl Write,
) -> std::io::Result<i32> {
    let (conf, mut report) = match load(file.as_deref(), env) {
        Ok(loaded) => (Some(loaded.conf), loaded.report),
        Err(report) => (None, report),
    };
    if let Some(conf) = &conf {
        // What only shows when it is built: names of filters, their settings, their order.
        let built = Snapshot::new(conf, registry, &Ports::detached()).err();
        let unfit = built.into_iter().chain(crate::reload::problems(conf));
        report
            .problems
            .extend(unfit.map(|message| found("build", "", message)));
        let certificates = crate::tls::problems(conf).into_iter();
        report
            .problems
            .extend(certificates.map(|message| found("tls", "tollkeeper → tls", message)));
    }
    let refused = report.has_errors() || strict && report.count(Severity::Warning) > 0;
    match format {
        Format::Text => text(conf.as_ref(), &report, refused, out)?,
        Format::Json => writeln!(out, "{:#}", report.to_json())?,
        Format::Github => write!(out, "{}", report.to_github())?,
    }
    out.flush()?;
    Ok(if refused { EXIT_CONFIG } else { 0 })
}

/// What was found beyond the file's text, and so has no line in it.
fn found(code: &'static str, path: &str, message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        code,
        message,
        at: None,
        label: None,
        help: None,
        path: path.into(),
    }
}

fn text(conf: Option<&Conf>, report: &Report, refused: bool, out: &mut impl Write) -> std::io::Result<()> {
    write!(out, "{}", report.render(true))?;
    if let Some(conf) = conf {
        let file = match &conf.source.path {
            Some(path) => path.display().to_string(),
            None => "no config file found: zero-config mode".into(),
        };
        let paths = conf.general.pass_through_endpoints.len();
        let mut parts = vec![
            counted(conf.models.len(), "deployment"),
            counted(paths, "pass-through path"),
        ];
        let own = &conf.tollkeeper;
        let further = [(own.services.len(), "service"), (own.lanes.len(), "lane")];
        let there = further.into_iter().filter(|(n, _)| *n > 0);
        parts.extend(there.map(|(n, one)| counted(n, one)));
        let skipped = match conf.skipped.len() {
            0 => String::new(),
            n => format!(" ({n} skipped)"),
        };
        if let Some(models) = parts.first_mut() {
            models.push_str(&skipped);
        }
        writeln!(out, "{file}: {}", parts.join(", "))?;
    }
    let end = if refused { " · exit 78" } else { "" };
    writeln!(out, "{}{end}", report.summary())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(file: &str, format: Format, strict: bool) -> (i32, String) {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
        let mut out = Vec::new();
        let code = report(
            Some(file),
            format,
            strict,
            &Env::default(),
            &filters::builtin::registry(),
            &mut out,
        )
        .unwrap();
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_good_config_is_summed_up() {
        let (code, out) = checked("conf/tollkeeper.yaml", Format::Text, true);
        assert_eq!(code, 0, "{out}");
        assert!(
            out.ends_with("conf/tollkeeper.yaml: 0 deployments, 0 pass-through paths\nno problems\n"),
            "{out}"
        );
    }

    #[test]
    fn a_bad_config_ends_with_78() {
        let (code, out) = checked("tests/conf/broken/unknown_fields.yaml", Format::Text, false);
        assert_eq!(code, EXIT_CONFIG);
        assert!(out.ends_with("2 errors, 7 warnings · exit 78\n"), "{out}");
        let (_, out) = checked("tests/conf/broken/unknown_fields.yaml", Format::Json, false);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&json["errors"], &json["warnings"]), (&2.into(), &7.into()));
        let (_, out) = checked("tests/conf/broken/unknown_fields.yaml", Format::Github, false);
        assert_eq!(
            out.lines().filter(|line| line.starts_with("::error ")).count(),
            2,
            "{out}"
        );
    }

    #[test]
    fn a_chain_that_cannot_be_built_is_an_error() {
        let lane = |filters: &str, auth: &str| {
            let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
            let lane =
                format!("{{name: l, paths: [/x/*], driver: call, auth: {auth}, filters: [{filters}]}}");
            std::fs::write(file.path(), format!("tollkeeper:\n  lanes: [{lane}]\n")).unwrap();
            checked(file.path().to_str().unwrap(), Format::Text, false)
        };
        let check = |filters: &str, auth: &str, want: &str| {
            let (code, out) = lane(filters, auth);
            assert_eq!(
                code,
                if want.is_empty() { 0 } else { EXIT_CONFIG },
                "{filters}: {out}"
            );
            assert!(out.contains(want), "{filters}: {out}");
        };
        check(
            "auth, access, limits, metrics, spend, usage, translate",
            "required",
            "",
        );
        check("translate", "open", "");
        check("translate", "required", "its filters need auth");
        check(
            "auth, acess, translate",
            "required",
            "known filters: access, auth",
        );
        check(
            "auth, translate, usage",
            "required",
            "translate has to stand last",
        );
        check(
            "auth, usage, spend, translate",
            "required",
            "spend has to stand before usage",
        );
        check("auth, access, spend", "required", "needs the filter translate");
        check("{cors: {allow: 1}}, translate", "open", "unknown field");
    }

    #[test]
    fn strict_refuses_warnings() {
        assert_eq!(
            checked("tests/conf/broken/weak_master_key.yaml", Format::Text, false).0,
            0
        );
        assert_eq!(
            checked("tests/conf/broken/weak_master_key.yaml", Format::Text, true).0,
            EXIT_CONFIG
        );
    }
}
