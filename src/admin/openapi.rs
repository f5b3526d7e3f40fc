//! `GET /openapi.json`: the API's description, OpenAPI 3.1. Management calls are described from the same
//! rows that route them, so that neither knows a path or a field that the other does not. How bodies and
//! answers of a name look stands in `openapi.json` beside this file.

use super::budgets::BUDGET;
use super::customers::CUSTOMER;
use super::fields::{Field, Kind};
use super::objects::Sort;
use super::organizations::ORGANIZATION;
use super::routes::{self, Route, Who};
use super::tags::TAG;
use super::teams::TEAM;
use super::users::USER;
use bytes::Bytes;
use filters::model::call::Endpoint;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// Schemas by name, what is told of model calls, names of operations, tags.
const SHAPES: &str = include_str!("openapi.json");

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

/// `GET /openapi.json`.
pub async fn served() -> impl axum::response::IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}

/// Statuses that any call may end with, and those of the parts.
const ERRORS: [(u16, &str); 17] = [
    (400, "A value is not possible"),
    (401, "No key, or one that is not known"),
    (403, "The key may not do this"),
    (404, "There is no such object"),
    (405, "The path does not take this method"),
    (408, "The request did not come whole in time"),
    (
        409,
        "It exists already, or somebody else changed it at the same time",
    ),
    (413, "The body is too large"),
    (415, "The body is of another type"),
    (422, "A field is missing or of another type"),
    (429, "A budget or a limit is reached, or too many requests"),
    (431, "The head is too large"),
    (500, "The gateway failed"),
    (502, "The model's server failed or cannot be reached"),
    (503, "The database is away"),
    (504, "The model's server did not answer in time"),
    (411, "A length is missing"),
];

const MANAGEMENT: [u16; 12] = [400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 503];
const OPEN: [u16; 5] = [400, 405, 408, 429, 500];
const CALLS: [u16; 14] = [
    400, 401, 403, 404, 405, 408, 411, 413, 415, 422, 429, 500, 502, 503,
];

pub(super) fn document() -> Value {
    let shapes: Value = serde_json::from_str(SHAPES).unwrap_or_default();
    let part = |name: &str| shapes.get(name).cloned().unwrap_or_default();
    let mut schemas = object(part("schemas"));
    for (name, sort) in ROWS {
        schemas.insert(name.into(), row(sort));
    }
    let names = object(part("operations"));
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in Endpoint::ALL {
        let told = shapes.pointer(&format!("/calls/{}", endpoint.path().replace('/', "~1")));
        paths.insert(
            format!("/v1{}", endpoint.path()),
            json!({"post": call(told.unwrap_or(&Value::Null))}),
        );
    }
    for (path, item) in object(others()) {
        paths.insert(path, item);
    }
    for route in routes::all() {
        for path in route.paths {
            let operation = managed(route, path, &names, &mut schemas);
            let item = paths.entry(path.to_string()).or_insert_with(|| json!({}));
            item[route.verb.as_str().to_ascii_lowercase()] = operation;
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tollkeeper",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API for every model, and LiteLLM's management API. Model calls are also served \
                            without /v1, below /openai/v1, and as /engines/{model}/… and \
                            /openai/deployments/{model}/….",
            "license": {"name": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"BearerAuth": []}],
        "tags": tags(part("tags"), &paths),
        "paths": paths,
        "components": {
            "securitySchemes": {
                "BearerAuth": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "API Key",
                    "description": "A virtual key or the master key",
                },
            },
            "schemas": schemas,
            "responses": {
                "BadRequest": error("Bad request: a value is not possible"),
                "Unauthorized": error("Unauthorized: no key, or one that is not known"),
                "RateLimited": limited(),
                "InternalError": error("The gateway failed"),
            },
        },
    })
}

/// Rows of objects, described from the fields that they are made of. What single answers add stands in
/// `openapi.json`.
const ROWS: [(&str, &Sort); 6] = [
    ("UserRow", &USER),
    ("TeamRow", &TEAM),
    ("OrganizationRow", &ORGANIZATION),
    ("CustomerRow", &CUSTOMER),
    ("BudgetRow", &BUDGET),
    ("TagRow", &TAG),
];

fn row(sort: &Sort) -> Value {
    let mut properties = Map::new();
    for Field { name, kind, note, .. } in sort.fields.iter().flat_map(|g| g.iter()) {
        let mut schema = shown(*kind);
        if kind.unset().is_null() {
            nullable(&mut schema);
        }
        schema["description"] = (*note).into();
        properties.insert((*name).into(), schema);
    }
    let text = json!({"type": "string"});
    let maybe = json!({"type": ["string", "null"]});
    properties.extend([
        (sort.id.to_string(), text.clone()),
        ("created_at".into(), maybe.clone()),
        ("updated_at".into(), maybe.clone()),
        ("created_by".into(), maybe.clone()),
        ("updated_by".into(), maybe.clone()),
        ("budget_reset_at".into(), maybe),
    ]);
    if sort.table.kind().is_some() {
        properties.extend([
            (
                "spend".to_string(),
                json!({"type": "number", "description": "Dollars, in the budget's period"}),
            ),
            ("total_spend".into(), json!({"type": "number"})),
            ("model_spend".into(), json!({"type": "object"})),
            ("litellm_budget_table".into(), json!({"type": ["object", "null"]})),
        ]);
    }
    let required: Vec<String> = properties.keys().cloned().collect();
    properties.insert(
        "not_enforced".into(),
        json!({"type": "array", "items": text, "description": "Fields that are kept and that nothing here keeps to"}),
    );
    json!({"type": "object", "required": required, "properties": properties})
}

/// What a field is shown as: what it takes, without the bounds that are looked at when it is written.
fn shown(kind: Kind) -> Value {
    match kind {
        Kind::OneOf(_) | Kind::Id => json!({"type": "string"}),
        kind => of(kind),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn error(description: &str) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema("Error")}}})
}

fn limited() -> Value {
    let mut limited = error("A budget or a limit is reached, or too many requests");
    limited["headers"] = json!({
        "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before retrying"},
    });
    limited
}

/// The good answer, and how it may fail.
fn responses(good: Value, codes: &[u16]) -> Value {
    let mut all = Map::from_iter([("200".to_string(), good)]);
    for code in codes {
        let response = match code {
            400 => json!({"$ref": "#/components/responses/BadRequest"}),
            401 => json!({"$ref": "#/components/responses/Unauthorized"}),
            429 => json!({"$ref": "#/components/responses/RateLimited"}),
            500 => json!({"$ref": "#/components/responses/InternalError"}),
            code => {
                let known = ERRORS.iter().find(|(c, _)| c == code);
                error(known.map_or("", |(_, what)| what))
            }
        };
        all.insert(code.to_string(), response);
    }
    Value::Object(all)
}

/// A model call: what is told of it, and that an upstream's refusals pass.
fn call(told: &Value) -> Value {
    let text = |name: &str| told.get(name).and_then(Value::as_str).unwrap_or_default();
    let answers: Map<String, Value> = object(told.get("answers").cloned().unwrap_or_default())
        .into_iter()
        .map(|(media, name)| {
            let body = match name.as_str() {
                Some(name) => json!({"schema": schema(name)}),
                None => json!({}),
            };
            (media, body)
        })
        .collect();
    let media = match told.get("form") {
        Some(Value::Bool(true)) => "multipart/form-data",
        _ => "application/json",
    };
    let mut responses = responses(
        json!({"description": "The model's answer", "content": answers}),
        &CALLS,
    );
    responses["504"] = error("The model's server did not answer in time");
    responses["4XX"] = error("What else the model's server refuses");
    json!({
        "tags": [text("tag")],
        "operationId": text("operation"),
        "summary": format!("{}: a call to a model", text("tag")),
        "requestBody": {"required": true, "content": {media: {"schema": schema(text("request"))}}},
        "responses": responses,
    })
}

/// What is no model call and stands in no table.
fn others() -> Value {
    let get = |tag: &str, id: &str, summary: &str, open: bool, good: Value, codes: &[u16]| {
        let mut operation = json!({
            "tags": [tag],
            "operationId": id,
            "summary": summary,
            "responses": responses(good, codes),
        });
        if open {
            operation["security"] = json!([]);
        }
        operation
    };
    let json_of = |name: &str, what: &str| json!({"description": what, "content": {"application/json": {"schema": schema(name)}}});
    let health =
        |id: &str, what: &str, name: &str| get("Health", id, what, true, json_of(name, what), &[400, 405]);
    let mut readiness = health("readinessProbe", "Whether it can serve new callers", "Readiness");
    readiness["responses"]["503"] = json_of("Readiness", "The database is away, or the process is leaving");
    let text =
        json!({"description": "For Prometheus", "content": {"text/plain": {"schema": {"type": "string"}}}});
    let mut metrics = get(
        "Health",
        "getMetrics",
        "Metrics; a key is needed from outside of the internal networks",
        false,
        text,
        &[400, 401, 403, 405, 500, 503],
    );
    metrics["security"] = json!([{}, {"BearerAuth": []}]);
    let mut model = get(
        "Models",
        "retrieveModel",
        "One model",
        false,
        json_of("Model", "The model"),
        &[400, 401, 403, 404, 405, 429, 500, 503],
    );
    model["parameters"] = json!([
        {"name": "model", "in": "path", "required": true, "schema": {"type": "string"}, "description": "The model ID"},
    ]);
    let page = json!({"description": "What this is", "content": {
        "text/html": {"schema": {"type": "string"}},
        "application/json": {"schema": {"type": "object"}},
    }});
    let plain = json!({"description": "What this is, for coding agents", "content": {
        "text/plain": {"schema": {"type": "string"}},
    }});
    json!({
        "/v1/models": {"get": get(
            "Models",
            "listModels",
            "The models that the key may call",
            false,
            json_of("ModelList", "The models"),
            &[400, 401, 403, 405, 429, 500, 503],
        )},
        "/v1/models/{model}": {"get": model},
        "/health": {"get": health("healthCheck", "Whether it is alive, and which version", "Health")},
        "/health/liveliness": {"get": health("livenessProbe", "Whether it is alive", "Health")},
        "/health/liveness": {"get": health("livenessProbeUsualSpelling", "Whether it is alive", "Health")},
        "/health/readiness": {"get": readiness},
        "/metrics": {"get": metrics},
        "/": {"get": get("Gateway", "front", "A page with links", true, page, &OPEN)},
        "/llms.txt": {"get": get("Gateway", "llmsTxt", "A few words for coding agents", true, plain, &OPEN)},
    })
}

/// A call of the management API, from its row.
fn managed(route: &Route, path: &str, names: &Map<String, Value>, schemas: &mut Map<String, Value>) -> Value {
    let full = format!("{} {path}", route.verb.as_str());
    let known = names.get(&full).and_then(Value::as_str).map(str::to_string);
    let id = known.unwrap_or_else(|| operation_id(&full));
    let good = if schemas.contains_key(route.answer) {
        schema(route.answer)
    } else {
        json!({})
    };
    let good = json!({"description": route.summary, "content": {"application/json": {"schema": good}}});
    let codes: &[u16] = if route.who == Who::Open {
        &OPEN
    } else {
        &MANAGEMENT
    };
    let mut operation = json!({
        "tags": tags_of(route, path),
        "operationId": id,
        "summary": route.summary,
        "responses": responses(good, codes),
    });
    if route.who == Who::Open {
        operation["security"] = json!([]);
    }
    let in_path = path
        .split('/')
        .filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| {
        json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}})
    });
    let in_query = route.query.iter().map(|f| {
        json!({"name": f.name, "in": "query", "required": f.required, "schema": of_query(f.name, f.kind), "description": f.note})
    });
    let parameters: Vec<Value> = in_path.chain(in_query).collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if !route.body.is_empty() {
        let body = body(route);
        // Bodies of a known name are shared.
        let body = match id.as_str() {
            "generateKey" => {
                schemas.insert("KeyGenerateRequest".into(), body);
                schema("KeyGenerateRequest")
            }
            _ => body,
        };
        let required = route.fields().any(|f| f.required);
        operation["requestBody"] =
            json!({"required": required, "content": {"application/json": {"schema": body}}});
    }
    operation
}

/// `POST /key/service-account/generate` → `postKeyServiceAccountGenerate`.
fn operation_id(full: &str) -> String {
    let words = full
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|w| !w.is_empty());
    let mut id = String::new();
    for (at, word) in words.enumerate() {
        let word = word.to_ascii_lowercase();
        let (first, rest) = word.split_at(1);
        match at {
            0 => id.push_str(&word),
            _ => id.extend([&first.to_ascii_uppercase(), rest]),
        }
    }
    id
}

fn tags_of(route: &Route, path: &str) -> Vec<String> {
    let (first, rest) = route.group.split_at(route.group.len().min(1));
    let own = format!("{}{rest}", first.to_ascii_uppercase());
    match path {
        "/user/info" => vec!["Spend".into(), own],
        _ => vec![own],
    }
}

/// Those with words about them first, then whatever else is in use.
fn tags(known: Value, paths: &Map<String, Value>) -> Value {
    let Value::Array(mut known) = known else {
        return json!([]);
    };
    let used = paths
        .values()
        .filter_map(Value::as_object)
        .flat_map(|item| item.values())
        .filter_map(|operation| operation.get("tags")?.as_array())
        .flatten();
    for tag in used {
        if !known.iter().any(|k| k.get("name") == Some(tag)) {
            known.push(json!({"name": tag}));
        }
    }
    known.into()
}

fn body(route: &Route) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for Field {
        name,
        kind,
        required: must,
        note,
    } in route.fields()
    {
        let mut schema = of(*kind);
        if !must {
            // null is as good as absent.
            nullable(&mut schema);
        } else {
            required.push(*name);
        }
        schema["description"] = (*note).into();
        properties.insert((*name).into(), schema);
    }
    let mut out = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    out
}

fn nullable(schema: &mut Value) {
    if let Some(Value::String(kind)) = schema.get("type") {
        schema["type"] = json!([kind, "null"]);
    }
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.push(Value::Null);
    }
}

/// What a field takes.
fn of(kind: Kind) -> Value {
    match kind {
        Kind::Text | Kind::Key | Kind::Time | Kind::Period => json!({"type": "string"}),
        Kind::Id => json!({"type": "string", "maxLength": 512}),
        Kind::OneOf(words) => json!({"type": "string", "enum": words}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Count => json!({"type": "integer", "minimum": 0}),
        Kind::Money => json!({"type": "number", "minimum": 0}),
        Kind::List | Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Objects => json!({"type": "array", "items": {"type": "object"}}),
        Kind::Object | Kind::Settings => json!({"type": "object", "additionalProperties": true}),
        Kind::Names => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Kind::ModelBudgets => {
            json!({"type": "object", "additionalProperties": {"type": ["number", "object"]}})
        }
        Kind::ModelCounts => {
            json!({"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}})
        }
        Kind::Weight => json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1000}),
    }
}

fn of_query(name: &str, kind: Kind) -> Value {
    match kind {
        // Days may be given alone, and so does the plain API.
        Kind::Time if name.ends_with("_date") => json!({"type": "string", "format": "date"}),
        Kind::Count => json!({"type": "integer", "minimum": 1}),
        kind => of(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_hangs_together() {
        let document = document();
        let shapes: Value = serde_json::from_str(SHAPES).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is not described");
        }
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_string()), "{method} {path}: {id} is there twice");
                assert!(operation["responses"]["200"].is_object(), "{method} {path}");
            }
        }
        for endpoint in Endpoint::ALL {
            assert!(
                shapes["calls"][endpoint.path()].is_object(),
                "{}",
                endpoint.path()
            );
        }
        for route in routes::all().filter(|r| r.answer != "Object") {
            let name = route.answer;
            assert!(
                schemas.contains_key(name),
                "{:?}: {name} is not described",
                route.paths
            );
        }
        for name in shapes["operations"].as_object().unwrap().values() {
            assert!(ids.contains(name.as_str().unwrap()), "{name}");
        }
        let tags = &document["tags"];
        assert!(tags.as_array().unwrap().iter().any(|t| t["name"] == "Config"));
        assert_eq!(
            document["paths"]["/user/info"]["get"]["tags"],
            json!(["Spend", "Users"])
        );
        assert_eq!(
            operation_id("GET /v2/model/info"),
            "getV2ModelInfo",
            "names are made of the path"
        );
    }
}
