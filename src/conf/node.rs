//! YAML text to a tree that knows where everything stands.
//!
//! Built on the parser's events, because a config's reader must name the line of any value long
//! after parsing. Scalars keep their text: what `yes` or `0644` means is asked by whoever reads
//! the field. Merge keys and aliases are resolved here; size, depth and alias growth are bounded.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{self as granit, Event, Parser, ScalarStyle};

use super::report::Notes;
pub(super) use super::scalar::{Origin, Scalar};
use super::text::shown;
use super::types::Span;

/// Most values in a tree, counting what aliases repeat.
const MAX_NODES: usize = 200_000;
/// Most bytes of text in a tree, counting what aliases repeat.
const MAX_TEXT: usize = 16 << 20;
/// Deepest nesting, counting what aliases nest.
const MAX_DEPTH: usize = 64;

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub value: Value,
    pub at: Span,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Scalar(Scalar),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub key_at: Span,
    pub value: Node,
}

impl Node {
    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        self.scalar().is_some_and(Scalar::is_null)
    }

    /// What it is, for messages: `a list`, `a number`.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar(s) if s.is_null() => "nothing",
            Value::Scalar(s) if s.as_bool().is_some() => "a boolean",
            Value::Scalar(s) if s.as_float().is_some() => "a number",
            Value::Scalar(_) => "text",
        }
    }

    /// The same as JSON, as PyYAML would have understood it.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(s) if s.is_null() => serde_json::Value::Null,
            Value::Scalar(s) => {
                if let Some(b) = s.as_bool() {
                    b.into()
                } else if let Some(i) = s.as_int() {
                    i.into()
                } else if let Some(f) = s.as_float() {
                    f.into()
                } else {
                    s.text.clone().into()
                }
            }
            Value::Seq(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|e| (e.key.clone(), e.value.to_json()))
                .collect(),
        }
    }
}

/// Why a text is no tree; already written into the notes.
#[derive(Debug)]
pub(super) struct Unreadable;

/// Reads one file's text. An empty text is an empty mapping.
pub(super) fn parse(text: &str, file: u32, notes: &Notes) -> Result<Node, Unreadable> {
    let options = granit::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder::new(file, notes);
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                let mark = error.marker();
                let at = place(file, &granit::Span::empty(*mark));
                if matches!(error.kind(), granit::ErrorKind::RecursionLimitExceeded) {
                    let message = format!("the config is nested too deeply: at most {MAX_DEPTH} levels");
                    notes.error("too-large", message).at(at);
                    return Err(Unreadable);
                }
                notes
                    .error("syntax", sentence(&error.info()))
                    .at(at)
                    .help(syntax_help(text, at));
                return Err(Unreadable);
            }
        }
    }
    let nothing = Node {
        value: Value::Map(Vec::new()),
        at: Span {
            file,
            line: 1,
            col: 1,
            start: 0,
            end: 0,
        },
    };
    Ok(builder.root.filter(|root| !root.is_null()).unwrap_or(nothing))
}

/// What the parser says, as the end of `cannot read this as YAML: …`.
fn sentence(info: &str) -> String {
    format!("cannot read this as YAML: {}", shown_message(info))
}

fn shown_message(info: &str) -> String {
    info.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn syntax_help(text: &str, at: Span) -> String {
    let line = text
        .lines()
        .nth((at.line as usize).saturating_sub(1))
        .unwrap_or_default();
    if line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t') {
        return "indent with spaces: YAML takes no tabs there".into();
    }
    if line.trim_start().starts_with('*') || line.contains(": *") {
        return "put quotes around a value that starts with `*`: \"*\"".into();
    }
    if line.contains(": @") || line.contains(": `") || line.contains(": %") {
        return "put quotes around a value that starts with a special character".into();
    }
    "look at this line and the one above: indentation, a missing `:` or an unclosed quote".into()
}

fn place(file: u32, span: &granit::Span) -> Span {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let offset = |mark: &granit::Marker| number(mark.byte_offset().unwrap_or_else(|| mark.index()));
    Span {
        file,
        line: number(span.start.line()),
        col: number(span.start.col() + 1),
        start: offset(&span.start),
        end: offset(&span.end).max(offset(&span.start)),
    }
}

/// How much a subtree weighs, so that an alias to it can be paid for.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    nodes: usize,
    text: usize,
    depth: usize,
}

enum Shape {
    Seq(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        index: HashMap<String, usize>,
        key: Option<(String, Span)>,
        merges: Vec<Node>,
    },
}

struct Frame {
    shape: Shape,
    at: Span,
    anchor: usize,
    weight: Weight,
}

struct Builder<'a> {
    file: u32,
    notes: &'a Notes,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, Weight)>,
    root: Option<Node>,
    documents: usize,
    total: Weight,
}

impl<'a> Builder<'a> {
    fn new(file: u32, notes: &'a Notes) -> Self {
        Self {
            file,
            notes,
            stack: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            documents: 0,
            total: Weight::default(),
        }
    }

    fn event(&mut self, event: Event<'_>, span: granit::Span) -> Result<(), Unreadable> {
        let at = place(self.file, &span);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.notes
                        .error(
                            "syntax",
                            "a second document starts here; a config is one document",
                        )
                        .at(at)
                        .help("remove the `---`, or list the other file under `include:`");
                    return Err(Unreadable);
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref();
                self.check_tag(tag, at)?;
                let as_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let scalar = Scalar {
                    plain: style == ScalarStyle::Plain && !as_text,
                    text: text.into_owned(),
                    origin: Origin::File,
                };
                let weight = Weight {
                    nodes: 1,
                    text: scalar.text.len(),
                    depth: 0,
                };
                self.put(
                    Node {
                        value: Value::Scalar(scalar),
                        at,
                    },
                    weight,
                    anchor,
                )
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), at)?;
                self.open(Shape::Seq(Vec::new()), at, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), at)?;
                let shape = Shape::Map {
                    entries: Vec::new(),
                    index: HashMap::new(),
                    key: None,
                    merges: Vec::new(),
                };
                self.open(shape, at, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
            Event::Alias(id) => match self.anchors.get(&id) {
                Some((node, weight)) => {
                    let (node, weight) = (node.clone(), *weight);
                    self.put(node, weight, 0)
                }
                None => {
                    self.notes
                        .error("alias", "this alias stands inside of what it names")
                        .at(at);
                    Err(Unreadable)
                }
            },
            _ => Ok(()),
        }
    }

    fn check_tag(&self, tag: Option<&granit::Tag>, at: Span) -> Result<(), Unreadable> {
        match tag {
            Some(tag) if !tag.is_yaml_core_schema() => {
                let text = format!("the tag `{}` has no meaning here", shown(&tag.original()));
                self.notes
                    .error("tag", text)
                    .at(at)
                    .help("other files are listed under `include:`, environment variables are written os.environ/NAME");
                Err(Unreadable)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, shape: Shape, at: Span, anchor: usize) -> Result<(), Unreadable> {
        if self.stack.len() >= MAX_DEPTH {
            return self.too_much("is nested too deeply", MAX_DEPTH, "levels", at);
        }
        self.total.nodes += 1;
        if self.total.nodes > MAX_NODES {
            return self.too_much("holds too many values", MAX_NODES, "values", at);
        }
        self.stack.push(Frame {
            shape,
            at,
            anchor,
            weight: Weight {
                nodes: 1,
                text: 0,
                depth: 0,
            },
        });
        Ok(())
    }

    fn close(&mut self, at: Span) -> Result<(), Unreadable> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        let mut weight = frame.weight;
        weight.depth += 1;
        let value = match frame.shape {
            Shape::Seq(items) => Value::Seq(items),
            Shape::Map {
                mut entries,
                mut index,
                merges,
                ..
            } => {
                for merge in merges {
                    self.merge(merge, &mut entries, &mut index)?;
                }
                Value::Map(entries)
            }
        };
        // The end lies behind the last value's line break; the start alone is what can be marked.
        let whole = Span {
            end: at.start.max(frame.at.start),
            ..frame.at
        };
        // The frame's own cost was counted when its children were put; it is not counted twice.
        self.put_counted(Node { value, at: whole }, weight, frame.anchor)
    }

    /// Adds what a `<<` brings; keys that are there already win.
    fn merge(
        &self,
        from: Node,
        entries: &mut Vec<Entry>,
        index: &mut HashMap<String, usize>,
    ) -> Result<(), Unreadable> {
        let maps = match from.value {
            Value::Map(map) => vec![map],
            Value::Seq(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => items
                .into_iter()
                .filter_map(|item| match item.value {
                    Value::Map(map) => Some(map),
                    _ => None,
                })
                .collect(),
            _ => {
                self.notes
                    .error("merge", "`<<` takes a mapping or a list of mappings")
                    .at(from.at)
                    .help("write `<<: *name` where `&name` stands before a mapping");
                return Err(Unreadable);
            }
        };
        for entry in maps.into_iter().flatten() {
            if !index.contains_key(&entry.key) {
                index.insert(entry.key.clone(), entries.len());
                entries.push(entry);
            }
        }
        Ok(())
    }

    /// Puts a leaf or an alias' copy in its place, after paying for it.
    fn put(&mut self, node: Node, weight: Weight, anchor: usize) -> Result<(), Unreadable> {
        self.total.nodes += weight.nodes;
        self.total.text += weight.text;
        if self.total.nodes > MAX_NODES {
            return self.too_much(
                "holds too many values, counting what aliases repeat",
                MAX_NODES,
                "values",
                node.at,
            );
        }
        if self.total.text > MAX_TEXT {
            return self.too_much(
                "holds too much text, counting what aliases repeat",
                MAX_TEXT,
                "bytes",
                node.at,
            );
        }
        self.put_counted(node, weight, anchor)
    }

    fn put_counted(&mut self, node: Node, weight: Weight, anchor: usize) -> Result<(), Unreadable> {
        if self.stack.len() + weight.depth > MAX_DEPTH {
            return self.too_much("is nested too deeply", MAX_DEPTH, "levels", node.at);
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.weight.nodes += weight.nodes;
        frame.weight.text += weight.text;
        frame.weight.depth = frame.weight.depth.max(weight.depth);
        match &mut frame.shape {
            Shape::Seq(items) => items.push(node),
            Shape::Map {
                entries,
                index,
                key,
                merges,
            } => match key.take() {
                None => match node.value {
                    Value::Scalar(scalar) => *key = Some((scalar.text, node.at)),
                    _ => {
                        self.notes
                            .error("syntax", "a key must be a text, not a list or a mapping")
                            .at(node.at);
                        return Err(Unreadable);
                    }
                },
                Some((name, _)) if name == "<<" => merges.push(node),
                Some((name, key_at)) => match index.get(&name) {
                    Some(&first) => {
                        if let Some(entry) = entries.get_mut(first) {
                            self.notes
                                .warning("duplicate-key", format!("`{}` is given twice", shown(&name)))
                                .at(key_at)
                                .label(format!(
                                    "this one counts; line {} is without effect",
                                    entry.key_at.line
                                ));
                            *entry = Entry {
                                key: name,
                                key_at,
                                value: node,
                            };
                        }
                    }
                    None => {
                        index.insert(name.clone(), entries.len());
                        entries.push(Entry {
                            key: name,
                            key_at,
                            value: node,
                        });
                    }
                },
            },
        }
        Ok(())
    }

    fn too_much(&self, what: &str, most: usize, unit: &str, at: Span) -> Result<(), Unreadable> {
        self.notes
            .error("too-large", format!("the config {what}: at most {most} {unit}"))
            .at(at);
        Err(Unreadable)
    }
}
