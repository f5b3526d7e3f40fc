//! The config from outside: broken files and what is said about them, whole files that must load
//! clean, and bytes that are no config at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Loads a file under a name that is the same on every machine.
fn report_of(file: &Path, env: &Env) -> Report {
    match load(Some(file), env) {
        Ok(loaded) => loaded.report,
        Err(report) => report,
    }
}

fn conf_of(text: &str, env: &Env) -> Conf {
    match load_text("config.yaml", text, env) {
        Ok(loaded) => loaded.conf,
        Err(report) => panic!("loads:\n{}", report.render(false)),
    }
}

fn yaml_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

/// Every broken config beside what is said about it. `UPDATE_EXPECT=1` writes what is said now,
/// to be read by a person before it is committed.
#[test]
fn broken_configs_are_explained() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let files = yaml_files(&root().join("tests/conf/broken"));
    assert!(files.len() >= 12, "the broken configs are there");
    let mut wrong = Vec::new();
    for file in files {
        let report = report_of(&file, &Env::default());
        let here = format!("{}/", file.parent().unwrap().display());
        let said = format!("{}{}\n", report.render(false), report.summary()).replace(&here, "");
        let expected = file.with_extension("expected");
        if update {
            fs::write(&expected, &said).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != said {
            wrong.push(format!("{}:\n{said}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "not what was expected:\n{}", wrong.join("\n"));
}

/// Variables that the examples and the seeds' configs name.
fn full_env() -> Env {
    Env::from([
        ("OPENAI_API_KEY", "sk-openai-0123456789"),
        ("OPENAI_ORGANIZATION", "org-1"),
        ("ANTHROPIC_API_KEY", "sk-ant-0123456789"),
        ("MISTRAL_API_KEY", "mistral-0123456789"),
        ("GROQ_API_KEY", "gsk-0123456789"),
        ("STT_KEY", "stt-0123456789"),
        ("LITELLM_MASTER_KEY", "sk-vault-4fPq9ZtR2mXw7Lk"),
        ("DB_PASSWORD", "hunter2"),
        (
            "DATABASE_URL",
            "postgresql://litellm:hunter2@litellm-postgres:5432/litellm",
        ),
        ("SEARXNG_API_BASE", "http://searxng:8080"),
    ])
}

#[test]
fn the_default_and_every_example_load_clean() {
    let mut files = yaml_files(&root().join("conf/examples"));
    assert!(files.len() >= 5, "the examples are there");
    files.push(root().join("conf/tollkeeper.yaml"));
    for file in files {
        let report = report_of(&file, &full_env());
        let loud = report.count(Severity::Error) + report.count(Severity::Warning);
        assert_eq!(
            loud,
            0,
            "{} loads clean:\n{}",
            file.display(),
            report.render(false)
        );
    }
}

#[test]
fn the_annotated_default_says_what_the_defaults_are() {
    let loaded = load(Some(&root().join("conf/tollkeeper.yaml")), &Env::default()).unwrap();
    // The one thing it turns on: the seeds' 100 requests a second for an address, 200 at once.
    let expected = Own {
        rate_limit: Some(RateLimit {
            average: 100,
            period: Duration::from_secs(1),
            burst: 200,
            source: RateSource::Client,
        }),
        ..Own::default()
    };
    assert_eq!(loaded.conf.tollkeeper, expected);
}

#[test]
fn the_guides_config_loads_with_its_env_file_beside_it() {
    let seeds = root().join("tests/conf/seeds");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    fs::copy(seeds.join("implementation-guide.yaml"), &file).unwrap();
    fs::copy(seeds.join("implementation-guide.env"), dir.path().join(".env")).unwrap();
    let Loaded { conf, report } = load(Some(&file), &Env::default()).unwrap();

    let azure = |p: &&Problem| p.code == "unsupported" && p.message.contains("azure");
    assert_eq!(
        report.problems.iter().filter(azure).count(),
        5,
        "{}",
        report.render(false)
    );
    let others: Vec<_> = report.problems.iter().filter(|p| !azure(p)).collect();
    assert_eq!(
        others.iter().map(|p| p.code).collect::<Vec<_>>(),
        ["weak-key"],
        "the guide's key is a placeholder"
    );
    assert_eq!((conf.models.len(), conf.skipped.len()), (22, 5));

    let of = |name: &str| {
        conf.models
            .iter()
            .find(|m| m.model_name == name)
            .map(|m| &m.params)
            .unwrap()
    };
    let gpt = of("openai-gpt41");
    assert_eq!(
        (gpt.provider.name.as_str(), gpt.upstream_model.as_str()),
        ("openai", "gpt-4.1")
    );
    assert_eq!(gpt.api_base.as_deref(), Some("https://api.openai.com/v1"));
    assert_eq!(gpt.api_key, Some(Secret::new("sk-...")));
    let voxtral = of("voxtral-mini");
    assert_eq!(voxtral.api_base.as_deref(), Some("https://api.mistral.ai/v1"));
    let llama = of("ollama-llama31-8b");
    assert_eq!(llama.upstream_model, "llama3.1:8b");
    assert_eq!(
        llama.api_base.as_deref(),
        Some("http://host.docker.internal:11434/v1")
    );
    assert!(llama.provider.keyless && llama.api_key.is_none());
    assert!(conf.litellm.drop_params);
    assert_eq!(conf.litellm.request_timeout, Some(Duration::from_secs(120)));
    assert_eq!(
        conf.general.master_key,
        Some(Secret::new("sk-litellm-master-change-this"))
    );
    assert_eq!(
        conf.general.salt_key,
        Some(Secret::new("sk-litellm-salt-change-this"))
    );
    assert_eq!(conf.source.dotenv, Some(dir.path().join(".env")));
}

#[test]
fn the_operations_config_loads() {
    let loaded = load(
        Some(&root().join("tests/conf/seeds/operations.yaml")),
        &full_env(),
    )
    .unwrap();
    let conf = loaded.conf;
    assert_eq!(conf.models.len(), 7);
    assert_eq!(conf.general.pass_through_endpoints.len(), 3);
    assert_eq!(conf.models[0].params.upstream_model, "*");
    assert!(conf.general.database_url.is_some());
}

#[test]
fn no_config_at_all_is_a_config() {
    let env = Env::from([
        ("TOLLKEEPER_MASTER_KEY", "sk-ours"),
        ("LITELLM_MASTER_KEY", "sk-theirs"),
        ("DATABASE_URL", "postgres://h/d"),
        ("TOLLKEEPER_DATA_DIR", "/data"),
    ]);
    let conf = conf_of("", &env);
    assert_eq!(conf.general.master_key, Some(Secret::new("sk-ours")));
    assert_eq!(conf.general.database_url, Some(Secret::new("postgres://h/d")));
    assert_eq!(conf.tollkeeper.data_dir, Path::new("/data"));
    assert!(conf.models.is_empty() && conf.source.path.is_none());
    let conf = conf_of("general_settings: {master_key: sk-in-the-file-0123}", &env);
    assert_eq!(
        conf.general.master_key,
        Some(Secret::new("sk-in-the-file-0123")),
        "the file is not silent"
    );
}

#[test]
fn the_file_is_searched_for_in_order() {
    let env = Env::from([("HOME", "/home/joe")]);
    let places: Vec<_> = load::candidates(&env)
        .iter()
        .map(|p| p.display().to_string())
        .collect();
    assert_eq!(
        places,
        [
            "config.yaml",
            "litellm_config.yaml",
            "/app/config.yaml",
            "/home/joe/.config/tollkeeper/config.yaml",
            "/etc/tollkeeper/config.yaml",
        ]
    );
    let env = Env::from([("CONFIG_FILE_PATH", "/nowhere/config.yaml")]);
    let report = load(None, &env).unwrap_err();
    assert!(
        report.render(false).contains("/nowhere/config.yaml"),
        "a path that was named is not passed over"
    );
}

#[test]
fn yaml_1_1_booleans_and_quoted_values_are_understood() {
    for (said, meant) in [
        ("yes", true),
        ("On", true),
        ("TRUE", true),
        ("no", false),
        ("off", false),
        ("\"true\"", true),
    ] {
        let conf = conf_of(
            &format!("litellm_settings: {{drop_params: {said}}}"),
            &Env::default(),
        );
        assert_eq!(conf.litellm.drop_params, meant, "{said}");
    }
    let text = "model_list: [{model_name: 4.10, litellm_params: {model: openai/a, api_base: 'http://h', rpm: '1_000', \
                tpm: 1e6, timeout: '2.5', temperature: '0.5', seed: 0x10}}]";
    let conf = conf_of(text, &Env::default());
    let params = &conf.models[0].params;
    assert_eq!(conf.models[0].model_name, "4.10", "a name keeps its spelling");
    assert_eq!((params.rpm, params.tpm), (Some(1000), Some(1_000_000)));
    assert_eq!(params.timeout, Some(Duration::from_millis(2500)));
    assert_eq!(
        params.defaults["temperature"], "0.5",
        "what is quoted for the upstream stays text"
    );
    assert_eq!(params.defaults["seed"], 16);
}

#[test]
fn merge_keys_bring_what_is_not_set() {
    let text = "x-base: &base {model: openai/a, api_base: 'http://h/v1/', api_key: sk-0123, temperature: 0.1}\n\
                x-more: &more {temperature: 0.9, max_tokens: 5}\n\
                model_list:\n\
                - {model_name: one, litellm_params: {<<: *base, model: openai/b}}\n\
                - {model_name: two, litellm_params: {<<: [*base, *more]}}\n";
    let conf = conf_of(text, &Env::default());
    let [one, two] = conf.models.as_slice() else {
        panic!("two models")
    };
    assert_eq!(one.params.upstream_model, "b", "an own key wins");
    assert_eq!(one.params.api_base.as_deref(), Some("http://h/v1"));
    assert_eq!(
        two.params.defaults["temperature"], 0.1,
        "the first of several wins"
    );
    assert_eq!(two.params.defaults["max_tokens"], 5);
    assert_eq!(conf.models[1].at.line, 5);
}

#[test]
fn a_deployments_fields_are_all_read() {
    let text = "model_list: [{model_name: m, litellm_params: {model: openai/a, base_url: 'http://h/v1', api_key: k, \
                organization: org, headers: {X-A: 1, X-B: b}, extra_headers: {x-b: c}, stream_timeout: 30, \
                max_retries: 2, weight: 0.5, order: -1, tags: [a, b], drop_params: on, additional_drop_params: [seed], \
                api_version: 2024-05-01, input_cost_per_token: 2.5e-6, stop: [x]}, \
                model_info: {id: m-1, mode: chat, base_model: gpt-4.1, max_input_tokens: 8192, \
                output_cost_per_token: 0.00001, input_cost_per_token: 9, note: yes}}]";
    let conf = conf_of(text, &Env::default());
    let ModelEntry { params, info, .. } = &conf.models[0];
    let headers: Vec<_> = params
        .headers
        .iter()
        .map(|(k, v)| (k.as_str(), v.expose()))
        .collect();
    assert_eq!(headers, [("x-a", "1"), ("x-b", "c")], "extra_headers win");
    assert_eq!(params.costs["input_cost_per_token"], 2.5e-6, "litellm_params win");
    assert_eq!(params.costs["output_cost_per_token"], 1e-5);
    assert_eq!(params.costs.len(), 2);
    assert_eq!(
        (params.weight, params.order, params.drop_params),
        (Some(0.5), Some(-1), Some(true))
    );
    assert_eq!(params.base_model.as_deref(), Some("gpt-4.1"));
    assert_eq!(params.defaults.keys().collect::<Vec<_>>(), ["stop"]);
    assert_eq!(
        (info.id.as_deref(), info.max_input_tokens),
        (Some("m-1"), Some(8192))
    );
    assert_eq!(info.all["note"], true);
}

#[test]
fn wildcards_without_an_address_are_left_to_each_call() {
    let conf = conf_of(
        "model_list: [{model_name: '*', litellm_params: {model: '*'}}]",
        &full_env(),
    );
    assert_eq!(conf.models[0].params.provider.dialect, Dialect::ByName);
    let groq = litellm::resolve_name("groq/llama-3.3", &conf.env).unwrap();
    assert_eq!(groq.upstream_model, "llama-3.3");
    assert_eq!(groq.api_base.as_deref(), Some("https://api.groq.com/openai/v1"));
    assert!(groq.api_key.is_some());
    let claude = litellm::resolve_name("claude-sonnet-4-5", &conf.env).unwrap();
    assert_eq!(claude.provider.dialect, Dialect::Anthropic);
}

#[test]
fn a_providers_key_goes_to_the_provider_only() {
    let text = |base: &str| {
        format!("model_list: [{{model_name: m, litellm_params: {{model: openai/a, api_base: '{base}'}}}}]")
    };
    let env = full_env();
    assert!(
        conf_of(&text("https://api.openai.com/v1"), &env).models[0]
            .params
            .api_key
            .is_some()
    );
    assert!(
        conf_of(&text("http://llama-swap:8080/v1"), &env).models[0]
            .params
            .api_key
            .is_none()
    );
    let moved: Env = Env::from([
        ("OPENAI_API_KEY", "sk-x"),
        ("OPENAI_BASE_URL", "https://proxy.example.com/v1/"),
    ]);
    assert!(
        conf_of(&text("https://proxy.example.com/v1"), &moved).models[0]
            .params
            .api_key
            .is_some()
    );
}

#[test]
fn the_environment_fills_texts() {
    let text = "environment_variables: {FROM_FILE: in-the-file, SHARED: in-the-file}\n\
                model_list: [{model_name: '${A}-${B:-b}', litellm_params: {model: openai/a, api_base: 'http://${HOST}/v1', \
                api_key: os.environ/FROM_FILE, headers: {Authorization: Bearer os.environ/SHARED}, \
                user: '$${A} and ${A%x} and $A'}}]";
    let env = Env::from([
        ("A", "a"),
        ("HOST", "h:1"),
        ("SHARED", "in-the-environment"),
        ("B", ""),
    ]);
    let conf = conf_of(text, &env);
    assert_eq!(conf.models[0].model_name, "a-b");
    let params = &conf.models[0].params;
    assert_eq!(params.api_base.as_deref(), Some("http://h:1/v1"));
    assert_eq!(params.api_key, Some(Secret::new("in-the-file")));
    assert_eq!(params.headers[0].1.expose(), "Bearer in-the-environment");
    assert_eq!(params.defaults["user"], "${A} and ${A%x} and $A");
    assert_eq!(
        conf.env.get("FROM_FILE"),
        Some(Secret::new("in-the-file")),
        "others see it too"
    );
}

#[test]
fn a_dotenv_is_read_and_the_real_environment_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    fs::write(&file, "general_settings: {master_key: os.environ/KEY}\n").unwrap();
    let dotenv = "# comment\nexport KEY = \"sk-quoted-0123456 # 789\"   # why\nPLAIN=a b # c\nSINGLE='x\\n'\nDOUBLE=\"x\\ny\"\n\
                  PEM=\"one\ntwo\"\nSHARED=file\nEMPTY=\nnot a line with hunter2\n";
    fs::write(dir.path().join(".env"), dotenv).unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "from a file\n").unwrap();
    let env = Env::from([("SHARED", "real"), ("MOUNTED_FILE", secret.to_str().unwrap())]);
    let Loaded { conf, report } = load(Some(&file), &env).unwrap();
    let get = |name: &str| conf.env.get(name).map(|s| s.expose().to_owned());
    assert_eq!(
        conf.general.master_key,
        Some(Secret::new("sk-quoted-0123456 # 789"))
    );
    assert_eq!(get("PLAIN").as_deref(), Some("a b"));
    assert_eq!(get("SINGLE").as_deref(), Some("x\\n"));
    assert_eq!(get("DOUBLE").as_deref(), Some("x\ny"));
    assert_eq!(get("PEM").as_deref(), Some("one\ntwo"));
    assert_eq!(get("SHARED").as_deref(), Some("real"));
    assert_eq!(get("EMPTY"), None, "empty is not set");
    assert_eq!(get("MOUNTED").as_deref(), Some("from a file"));
    assert_eq!(report.problems.len(), 1, "{}", report.render(false));
    assert!(
        !report.render(false).contains("hunter2"),
        "a line of .env is never shown"
    );
}

#[test]
fn includes_add_up_and_the_including_file_wins() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let model = |name: &str| {
        format!("- {{model_name: {name}, litellm_params: {{model: openai/a, api_base: 'http://h'}}}}\n")
    };
    fs::create_dir(dir.path().join("more")).unwrap();
    write(
        "config.yaml",
        &format!(
            "include: [more/a.yaml]\nlitellm_settings: {{drop_params: true}}\nmodel_list:\n{}",
            model("one")
        ),
    );
    write(
        "more/a.yaml",
        &format!(
            "include: b.yaml\nlitellm_settings: {{num_retries: 3}}\nmodel_list:\n{}",
            model("two")
        ),
    );
    write("more/b.yaml", &format!("model_list:\n{}", model("three")));
    let Loaded { conf, report } = load(Some(&dir.path().join("config.yaml")), &Env::default()).unwrap();
    assert!(report.problems.is_empty(), "{}", report.render(false));
    assert_eq!(
        conf.models
            .iter()
            .map(|m| m.model_name.as_str())
            .collect::<Vec<_>>(),
        ["one", "two", "three"]
    );
    assert!(conf.litellm.drop_params);
    assert_eq!(conf.litellm.num_retries, Some(3));
    assert_eq!(conf.source.files.len(), 3);
    assert!(conf.source.place(conf.models[2].at).ends_with("more/b.yaml:2:3"));
}

#[test]
fn files_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let said = |name: &str| {
        load(Some(&dir.path().join(name)), &Env::default())
            .unwrap_err()
            .render(false)
    };
    assert!(said("missing.yaml").contains("there is no such file"));
    assert!(said("").contains("it is a directory"));
    fs::write(dir.path().join("bytes.yaml"), b"a: b\nc: \xff\n").unwrap();
    assert!(said("bytes.yaml").contains("line 2 holds a byte"));
    fs::write(dir.path().join("large.yaml"), vec![b'#'; (4 << 20) + 1]).unwrap();
    assert!(said("large.yaml").contains("larger than 4096 KiB"));
}

/// Every way a secret can stand in a config, in a file that is right and in files that are not.
#[test]
fn secrets_are_never_shown() {
    let text = "environment_variables: {SOME_KEY: hunter2-a}\n\
                model_list:\n\
                - model_name: m\n\
                \x20 litellm_params: {model: openai/a, api_base: 'http://h', api_key: hunter2-b, headers: {X-Auth: hunter2-c}, \
                aws_secret_access_key: hunter2-d, rpm: no}\n\
                general_settings:\n\
                \x20 master_key: hunter2-e\n\
                \x20 database_url: postgres://joe:hunter2-f@h/d\n\
                \x20 pass_through_endpoints: [{path: /x, target: 'http://h', headers: {Authorization: Bearer hunter2-g}}]\n\
                \x20 redis_url: redis://:hunter2-h@h\n\
                \x20 # sk-hunter2-i\n";
    let env = Env::from([("OTHER", "hunter2-j")]);
    let good = text.replace(", rpm: no", "");
    let Loaded { conf, report } = load_text("c.yaml", &good, &env).unwrap();
    assert_eq!(
        conf.models[0].params.api_key,
        Some(Secret::new("hunter2-b")),
        "they are there"
    );
    for shown in [
        format!("{conf:?} {conf:#?}"),
        report.render(false),
        report.to_json().to_string(),
        report.to_github(),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    // Breaking the file everywhere shows every line of it in some report. Only a name that is cut
    // in two cannot be known for a secret's.
    for (at, _) in text.char_indices() {
        let (before, after) = text.split_at(at);
        let mut broken = vec![format!("{before}\n\t{{]\"")];
        if !before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            broken.push(format!("{before}: {{{after}"));
            broken.push(format!("{before}]{after}"));
            broken.push(format!("{before}\t%{after}"));
        }
        for broken in broken {
            if let Err(report) = load_text("c.yaml", &broken, &env) {
                let shown = report.render(false) + &report.to_github();
                assert!(!shown.contains("hunter2"), "broken at {at}:\n{shown}");
            }
        }
    }
}

#[test]
fn the_report_is_written_for_programs_too() {
    let report = load_text(
        "c.yaml",
        "litellm_settings:\n  num_retries: many, 100%\n",
        &Env::default(),
    )
    .unwrap_err();
    let json = report.to_json();
    assert_eq!(json["errors"], 1);
    assert_eq!(json["problems"][0]["line"], 2);
    assert_eq!(json["problems"][0]["column"], 16);
    assert_eq!(
        report.to_github(),
        "::error title=number,file=c.yaml,line=2,col=16::`num_retries` is not a whole number from 0 up: \
         \"many, 100%25\"; for example `100`\n"
    );
    assert!(report.render(true).contains("\u{1b}["), "colours on a terminal");
    assert!(!report.render(false).contains('\u{1b}'), "and none elsewhere");
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let report = load_text(
        "c.yaml",
        "\"\\e[2Jx\\u202e\": 1\ntollkeeper: {log: {level: \"\\e]0;x\"}}\n",
        &Env::default(),
    );
    let shown = report.unwrap_err().render(false);
    assert!(
        !shown.contains('\u{1b}') && !shown.contains('\u{202e}'),
        "{shown:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        if let Err(report) = load_text("c.yaml", &text, &Env::default()) {
            report.render(false);
        }
    }

    /// Pieces of real configs in any order get deeper than bytes do.
    #[test]
    fn shuffled_configs_never_panic(
        pieces in proptest::collection::vec(
            prop::sample::select(vec![
                "model_list:\n", "- model_name: ", "  litellm_params:\n", "    model: ", "openai/", "*", "é\u{202e}", "\n",
                "    ", ": ", "&a ", "*a", "<<: *a\n", "[", "]", "{", "}", "\"", "'", "os.environ/X", "${X}", "${", "- ",
                "general_settings:\n", "  pass_through_endpoints:\n", "tollkeeper:\n", "  lanes:\n", "  limits: {json_body: ",
                "api_key: sk-secret", "postgres://a:b@c", "-1", "1e999", ".nan", "0x", "~", "!!str ", "|\n", "\t", "\r\n",
                "router_settings: {model_group_alias: {a: b}}\n", "headers: {a: b}\n", "# sk-0123456\n",
            ]),
            0..40,
        )
    ) {
        let text = pieces.concat();
        if let Err(report) = load_text("c.yaml", &text, &Env::default()) {
            report.render(false);
            report.to_github();
        }
    }
}
