//! Traefik's rules: `Host(`a`) && (PathPrefix(`/x`) || Method(`GET`))`, read into the alternatives that our
//! lanes can say. A rule with a condition that lanes do not have is refused as a whole: without the condition
//! it would let in what it keeps out.

/// Most alternatives that one rule may have once it is multiplied out.
const MOST: usize = 64;
/// Deepest nesting.
const DEEPEST: usize = 32;

/// One alternative. None = no condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    pub hosts: Option<Vec<String>>,
    /// As our lanes write them: `/x`, `/x/*`.
    pub paths: Option<Vec<String>>,
    pub methods: Option<Vec<String>>,
}

/// Reads a rule. `Err` is a sentence.
pub fn parse(text: &str) -> Result<Vec<Match>, String> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        depth: 0,
    };
    let all = parser.any()?;
    match parser.peek() {
        None => Ok(all),
        Some(token) => Err(format!("the rule goes on with {token:?} where it should end")),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    And,
    Or,
    Not,
    Open,
    Close,
    Comma,
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            ',' => tokens.push(Token::Comma),
            '!' => tokens.push(Token::Not),
            '&' | '|' => {
                if chars.next() != Some(c) {
                    return Err(format!("a single {c:?} means nothing in a rule"));
                }
                tokens.push(if c == '&' { Token::And } else { Token::Or });
            }
            '`' | '"' | '\'' => {
                let mut value = String::new();
                loop {
                    match chars.next() {
                        None => return Err("a quoted text has no end".into()),
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => value.extend(chars.next()),
                        Some(other) => value.push(other),
                    }
                }
                tokens.push(Token::Text(value));
            }
            c if c.is_ascii_alphabetic() => {
                let mut name = String::from(c);
                while let Some(more) = chars.next_if(|c| c.is_ascii_alphanumeric()) {
                    name.push(more);
                }
                tokens.push(Token::Name(name));
            }
            other => return Err(format!("{other:?} means nothing in a rule")),
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, token: &Token) -> bool {
        let is = self.peek() == Some(token);
        self.at += usize::from(is);
        is
    }

    fn any(&mut self) -> Result<Vec<Match>, String> {
        let mut all = self.every()?;
        while self.take(&Token::Or) {
            all.extend(self.every()?);
            bounded(&all)?;
        }
        Ok(all)
    }

    fn every(&mut self) -> Result<Vec<Match>, String> {
        let mut all = self.one()?;
        while self.take(&Token::And) {
            let more = self.one()?;
            let mut both = Vec::new();
            for a in &all {
                both.extend(more.iter().filter_map(|b| a.and(b)));
            }
            bounded(&both)?;
            all = both;
        }
        Ok(all)
    }

    fn one(&mut self) -> Result<Vec<Match>, String> {
        if self.take(&Token::Not) {
            return Err("lanes have no `!`".into());
        }
        if self.take(&Token::Open) {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err("the rule is nested too deeply".into());
            }
            let all = self.any()?;
            self.depth -= 1;
            return if self.take(&Token::Close) {
                Ok(all)
            } else {
                Err("a bracket has no end".into())
            };
        }
        let Some(Token::Name(name)) = self.peek().cloned() else {
            return Err("a matcher such as Host(`a`) is missing".into());
        };
        self.at += 1;
        if !self.take(&Token::Open) {
            return Err(format!("{name} has no brackets"));
        }
        let mut values = Vec::new();
        while let Some(Token::Text(value)) = self.peek().cloned() {
            self.at += 1;
            values.push(value);
            if !self.take(&Token::Comma) {
                break;
            }
        }
        if !self.take(&Token::Close) {
            return Err(format!("the brackets of {name} have no end"));
        }
        if values.is_empty() {
            return Err(format!("{name} says nothing"));
        }
        matcher(&name, &values).map(|m| vec![m])
    }
}

fn bounded(all: &[Match]) -> Result<(), String> {
    if all.len() > MOST {
        return Err(format!("the rule has more than {MOST} alternatives"));
    }
    Ok(())
}

fn matcher(name: &str, values: &[String]) -> Result<Match, String> {
    let each = |read: &dyn Fn(&str) -> Result<String, String>| {
        values
            .iter()
            .map(|v| read(v))
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    };
    Ok(match name.to_ascii_lowercase().as_str() {
        "host" | "hostheader" => Match {
            hosts: each(&host)?,
            ..Match::default()
        },
        "hostregexp" => {
            let hosts: Vec<String> = values.iter().map(|v| host_pattern(v)).collect::<Result<_, _>>()?;
            Match {
                // A pattern for every host is no condition.
                hosts: (!hosts.iter().any(|h| h == "*")).then_some(hosts),
                ..Match::default()
            }
        }
        "path" => Match {
            paths: each(&path)?,
            ..Match::default()
        },
        "pathprefix" => Match {
            paths: each(&|text| path(text).map(|p| format!("{}/*", p.trim_end_matches('/'))))?,
            ..Match::default()
        },
        "method" => Match {
            methods: each(&|text| Ok(text.to_ascii_uppercase()))?,
            ..Match::default()
        },
        _ => return Err(format!("lanes have no {name}")),
    })
}

fn host(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let bare = text.strip_suffix('.').unwrap_or(text);
    if bare.is_empty() || !bare.chars().all(good) || bare.split('.').any(str::is_empty) {
        return Err(format!("{text:?} is no host's name"));
    }
    Ok(bare.to_ascii_lowercase())
}

fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/')
        || text.contains(['{', '}', '*', '?', '#', '%', ';', '\\', ' '])
        || text.contains("//")
    {
        return Err(format!("{text:?} is no plain path"));
    }
    let trimmed = text.trim_end_matches('/');
    Ok(if trimmed.is_empty() {
        "/".into()
    } else {
        trimmed.to_string()
    })
}

/// What may stand for the first part of a name, in patterns of old and new.
const LABELS: [&str; 9] = [
    ".+",
    ".*",
    "[^.]+",
    "[a-z]+",
    "[a-z0-9]+",
    "[a-z0-9-]+",
    "[a-zA-Z0-9-]+",
    "[a-zA-Z0-9]+",
    "\\w+",
];

/// `^.+\.example\.com$` and `{any:.+}.example.com` are `*.example.com`; a pattern for every host is `*`.
fn host_pattern(text: &str) -> Result<String, String> {
    let unsure = || format!("the pattern {text:?} is not one that lanes can say; they have *.example.com");
    let (label, rest) = if let Some(named) = text.strip_prefix('{') {
        let (inside, rest) = named.split_once('}').ok_or_else(unsure)?;
        let label = inside.split_once(':').map_or("[^.]+", |(_, label)| label);
        (label, rest.to_string())
    } else {
        let plain = text.strip_prefix('^').unwrap_or(text);
        let plain = plain.strip_suffix('$').unwrap_or(plain);
        let plain = plain.replace("(.+)", ".+").replace("([^.]+)", "[^.]+");
        match LABELS.iter().find(|l| plain.starts_with(**l)) {
            Some(label) => (
                *label,
                plain.get(label.len()..).unwrap_or_default().replace("\\.", "."),
            ),
            None => return host(&plain.replace("\\.", ".")).map_err(|_| unsure()),
        }
    };
    if !LABELS.contains(&label) {
        return Err(unsure());
    }
    match rest.strip_prefix('.') {
        Some(domain) => host(domain).map(|d| format!("*.{d}")).map_err(|_| unsure()),
        None if rest.is_empty() => Ok("*".into()),
        None => Err(unsure()),
    }
}

impl Match {
    /// Both; None = that never happens.
    fn and(&self, other: &Match) -> Option<Match> {
        Some(Match {
            hosts: both(&self.hosts, &other.hosts, narrower_host)?,
            paths: both(&self.paths, &other.paths, narrower_path)?,
            methods: both(&self.methods, &other.methods, |a, b| {
                (a == b).then(|| a.to_string())
            })?,
        })
    }
}

/// What is in both lists. Outer None = nothing is.
#[allow(clippy::option_option)]
fn both(
    a: &Option<Vec<String>>,
    b: &Option<Vec<String>>,
    narrower: impl Fn(&str, &str) -> Option<String>,
) -> Option<Option<Vec<String>>> {
    let (Some(a), Some(b)) = (a, b) else {
        return Some(a.clone().or_else(|| b.clone()));
    };
    let mut found = Vec::new();
    for one in a {
        for other in b {
            if let Some(narrow) = narrower(one, other)
                && !found.contains(&narrow)
            {
                found.push(narrow);
            }
        }
    }
    (!found.is_empty()).then_some(Some(found))
}

fn narrower_host(a: &str, b: &str) -> Option<String> {
    let within = |name: &str, pattern: &str| {
        name == pattern || pattern.strip_prefix('*').is_some_and(|end| name.ends_with(end))
    };
    if within(a, b) {
        Some(a.to_string())
    } else {
        within(b, a).then(|| b.to_string())
    }
}

fn narrower_path(a: &str, b: &str) -> Option<String> {
    let within = |path: &str, other: &str| match other.strip_suffix("/*") {
        Some(start) => {
            let path = path.strip_suffix("/*").unwrap_or(path);
            path == start || path.strip_prefix(start).is_some_and(|rest| rest.starts_with('/'))
        }
        None => path == other,
    };
    if within(a, b) {
        Some(a.to_string())
    } else {
        within(b, a).then(|| b.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `hosts paths methods`, alternatives apart.
    fn said(rule: &str) -> String {
        let list = |l: &Option<Vec<String>>| l.as_ref().map_or("-".into(), |l| l.join(","));
        match parse(rule) {
            Ok(all) => all
                .iter()
                .map(|m| format!("{} {} {}", list(&m.hosts), list(&m.paths), list(&m.methods)))
                .collect::<Vec<_>>()
                .join(" | "),
            Err(why) => format!("error: {why}"),
        }
    }

    #[test]
    fn rules_are_read_as_traefik_reads_them() {
        for (rule, want) in [
            ("Host(`llm.haiven.local`)", "llm.haiven.local - -"),
            ("Host(`A.test`, `b.test`)", "a.test,b.test - -"),
            ("Host(`a.test`) || Host(\"b.test\")", "a.test - - | b.test - -"),
            ("Host(`a.test`) && PathPrefix(`/api`)", "a.test /api/* -"),
            ("PathPrefix(`/`)", "- /* -"),
            ("Path(`/x/`)&&Method(`get`,`POST`)", "- /x GET,POST"),
            (
                "Host(`a.test`) && (PathPrefix(`/a`) || Path(`/b`))",
                "a.test /a/* - | a.test /b -",
            ),
            (
                "Host(`a.test`) || Host(`b.test`) && PathPrefix(`/x`)",
                "a.test - - | b.test /x/* -",
            ),
            ("PathPrefix(`/a`) && PathPrefix(`/a/b`)", "- /a/b/* -"),
            ("PathPrefix(`/a`) && Path(`/a/c`)", "- /a/c -"),
            ("PathPrefix(`/a`) && PathPrefix(`/ab`)", ""),
            ("Host(`a.test`) && Host(`b.test`)", ""),
            ("HostRegexp(`{sub:[a-z]+}.example.com`)", "*.example.com - -"),
            ("HostRegexp(`^.+\\.example\\.com$`)", "*.example.com - -"),
            (
                "HostRegexp(`^[^.]+\\.example\\.com$`) && Host(`a.example.com`)",
                "a.example.com - -",
            ),
            ("HostRegexp(`{any:.*}`)", "- - -"),
            ("((Host(`a.test`)))", "a.test - -"),
        ] {
            assert_eq!(said(rule), want, "{rule}");
        }
    }

    #[test]
    fn what_lanes_cannot_say_is_refused_whole() {
        for (rule, want) in [
            ("Host(`a.test`) && !Path(`/x`)", "no `!`"),
            ("Host(`a.test`) && ClientIP(`10.0.0.0/8`)", "no ClientIP"),
            ("Headers(`x`, `y`)", "no Headers"),
            ("Host(`a.test`) && PathRegexp(`^/x`)", "no PathRegexp"),
            ("PathPrefix(`/{id:[0-9]+}`)", "no plain path"),
            ("HostRegexp(`^(a|b)\\.test$`)", "not one that lanes can say"),
            ("Host(`a.test`", "have no end"),
            ("Host(a.test)", "means nothing"),
            ("Host()", "says nothing"),
            ("Host(`a.test`) Path(`/x`)", "goes on"),
            ("Host(`a.test`) &", "single '&'"),
            ("Host(`a b`)", "no host's name"),
            ("(Host(`a.test`)", "no end"),
            ("", "is missing"),
            ("Host(`a", "no end"),
        ] {
            assert!(said(rule).contains(want), "{rule}: {}", said(rule));
        }
        let deep = format!("{}Host(`a`){}", "(".repeat(100), ")".repeat(100));
        assert!(said(&deep).contains("too deeply"));
        let wide = ["Path(`/a`) || Path(`/b`)"; 40].join(" || ");
        assert!(said(&wide).contains("alternatives"), "{}", said(&wide));
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "[HostPah(`a/)&|!, \"{}:.*]{0,60}") {
            let _ = parse(&text);
        }
    }
}
