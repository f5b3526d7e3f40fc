//! Content parts -> content blocks: text, pictures, documents. Sound is refused.

use serde_json::{Map, Value, json};

use crate::dialects::DialectError;

/// Blocks in Anthropic's own words, which pass as they are.
const NATIVE: &[&str] = &["image", "document", "search_result", "container_upload"];

/// One part of a message's content. `None` is a text of blanks only: Anthropic refuses
/// those, and leaving one out changes nothing. `at` says where the part stands, for refusals.
pub(super) fn block(part: &Value, at: &str) -> Result<Option<Value>, DialectError> {
    let fields = part
        .as_object()
        .ok_or_else(|| DialectError::invalid(at, "a content part must be an object"))?;
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
    let mut block = match kind {
        "text" | "input_text" | "output_text" => {
            let text = fields.get("text").and_then(Value::as_str);
            match text.ok_or_else(|| DialectError::invalid(at, "a text part needs a string in `text`"))? {
                blank if blank.trim().is_empty() => return Ok(None),
                text => json!({"type": "text", "text": text}),
            }
        }
        "image_url" => image(fields, at)?,
        "file" => file(fields, at)?,
        "input_audio" => {
            return Err(DialectError::invalid(
                at,
                "anthropic models do not take audio; send text or an image",
            ));
        }
        native if NATIVE.contains(&native) => return Ok(Some(part.clone())),
        other => {
            let message = format!(
                "content parts of type {other:?} are not understood; anthropic models take text, image_url and file"
            );
            return Err(DialectError::invalid(at, message));
        }
    };
    keep_cache_control(fields, &mut block);
    Ok(Some(block))
}

/// Carries a `cache_control` mark over to what its holder became.
pub(super) fn keep_cache_control(from: &Map<String, Value>, to: &mut Value) {
    if let (Some(mark), Some(to)) = (
        from.get("cache_control").filter(|mark| !mark.is_null()),
        to.as_object_mut(),
    ) {
        to.insert("cache_control".to_owned(), mark.clone());
    }
}

fn image(part: &Map<String, Value>, at: &str) -> Result<Value, DialectError> {
    let image = part.get("image_url");
    let url = image.and_then(|image| image.as_str().or_else(|| image.get("url")?.as_str()));
    let url =
        url.ok_or_else(|| DialectError::invalid(at, "an image_url part needs a string in `image_url.url`"))?;
    if is_http(url) {
        return Ok(json!({"type": "image", "source": {"type": "url", "url": url}}));
    }
    let (said, data) = data_uri(url).ok_or_else(|| {
        DialectError::invalid(
            at,
            "an image must be an http(s) URL or a data URI of the form data:image/png;base64,…",
        )
    })?;
    let format = image
        .and_then(|image| image.get("format"))
        .and_then(Value::as_str);
    embedded(format.unwrap_or(said), data, None, at)
}

fn file(part: &Map<String, Value>, at: &str) -> Result<Value, DialectError> {
    let file = part.get("file").and_then(Value::as_object);
    let file = file.ok_or_else(|| DialectError::invalid(at, "a file part needs an object in `file`"))?;
    let text = |name: &str| file.get(name).and_then(Value::as_str);
    let title = text("filename");
    if let Some(content) = text("file_data") {
        let (said, data) = data_uri(content).ok_or_else(|| {
            DialectError::invalid(
                at,
                "file_data must be a data URI of the form data:application/pdf;base64,…",
            )
        })?;
        return embedded(text("format").unwrap_or(said), data, title, at);
    }
    let id = text("file_id").filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| DialectError::invalid(at, "a file part needs `file_data` or `file_id`"))?;
    let source = match is_http(id) {
        true => json!({"type": "url", "url": id}),
        false => json!({"type": "file", "file_id": id}),
    };
    match text("format") {
        Some(format) if format.starts_with("image/") => Ok(json!({"type": "image", "source": source})),
        _ => Ok(document(source, title)),
    }
}

/// A picture or document whose bytes are in the request.
fn embedded(media_type: &str, data: &str, title: Option<&str>, at: &str) -> Result<Value, DialectError> {
    let media_type = match media_type {
        // Not a registered type, but what many programs say.
        "image/jpg" => "image/jpeg",
        other => other,
    };
    let base64 = json!({"type": "base64", "media_type": media_type, "data": data});
    if media_type.starts_with("image/") {
        return Ok(json!({"type": "image", "source": base64}));
    }
    if media_type == "application/pdf" {
        return Ok(document(base64, title));
    }
    if media_type.starts_with("text/") {
        let text = decoded(data).and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| DialectError::invalid(at, "a text file must be base64 of UTF-8"))?;
        return Ok(document(
            json!({"type": "text", "media_type": "text/plain", "data": text}),
            title,
        ));
    }
    let message = format!("anthropic models do not read {media_type:?}; send an image, a PDF or plain text");
    Err(DialectError::invalid(at, message))
}

fn document(source: Value, title: Option<&str>) -> Value {
    let mut block = json!({"type": "document", "source": source});
    if let (Some(title), Some(block)) = (title, block.as_object_mut()) {
        block.insert("title".to_owned(), title.into());
    }
    block
}

fn is_http(url: &str) -> bool {
    ["https://", "http://"].iter().any(|scheme| {
        url.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// `data:<type>[;…];base64,<data>` -> type and data.
fn data_uri(uri: &str) -> Option<(&str, &str)> {
    let scheme = uri.get(..5)?;
    let (meta, data) = uri.get(5..)?.split_once(',')?;
    let mut words = meta.split(';');
    let media_type = words.next().filter(|media_type| media_type.contains('/'))?;
    let is_base64 = words
        .next_back()
        .is_some_and(|last| last.eq_ignore_ascii_case("base64"));
    (scheme.eq_ignore_ascii_case("data:") && is_base64).then_some((media_type, data))
}

/// Base64, standard or URL-safe, padded or not.
fn decoded(data: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in data.trim_end_matches('=').bytes() {
        let sextet = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(sextet)) & 0xFFF_FFFF;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    // A single left-over character carries no whole byte.
    (held < 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_in_every_spelling() {
        assert_eq!(decoded("aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(decoded("aGVsbG8"), Some(b"hello".to_vec()));
        assert_eq!(decoded("_-8"), decoded("/+8="));
        assert_eq!(decoded(""), Some(vec![]));
        assert_eq!(decoded("a"), None);
        assert_eq!(decoded("a b="), None);
    }

    #[test]
    fn data_uris_are_told_from_anything_else() {
        assert_eq!(data_uri("data:image/png;base64,AA"), Some(("image/png", "AA")));
        assert_eq!(
            data_uri("DATA:text/plain;charset=utf-8;BASE64,"),
            Some(("text/plain", ""))
        );
        for bad in [
            "",
            "data:",
            "data:,x",
            "data:image/png,AA",
            "data:;base64,AA",
            "datä:",
            "http://x",
        ] {
            assert_eq!(data_uri(bad), None, "{bad}");
        }
    }
}
