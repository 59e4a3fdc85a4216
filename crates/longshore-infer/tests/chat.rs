//! Chat templates against transformers: templates of our own (`chat/cases.json`), and those of released models where the
//! shared data is present.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test's helpers are part of it")]

#[path = "../../longshore-convert/tests/convert/shared_data.rs"]
mod shared_data;

use longshore_infer::chat::{ChatError, ChatTemplate};
use serde_json::{Map, Value, json};
use shared_data::shared;

fn template(source: &str) -> Result<ChatTemplate, ChatError> {
    Ok(ChatTemplate::from_source("test.jinja", source, Map::new())?.with_today(2026, 11, 22))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap().clone()
}

fn user() -> Vec<Value> {
    vec![json!({"role": "user", "content": "hi"})]
}

fn render(source: &str) -> Result<String, ChatError> {
    template(source)?.render(&user(), None, false, &Map::new())
}

#[test]
fn templates_of_our_own_render_as_in_transformers() {
    let file: Value = serde_json::from_str(include_str!("chat/cases.json")).unwrap();
    let mut wrong = Vec::new();
    for case in list(&file["cases"]) {
        let mut context = file["values"].as_object().unwrap().clone();
        context.extend(case["extra"].as_object().unwrap().clone());
        let messages = context.remove("messages").map_or_else(user, |messages| list(&messages));
        let tools = context.remove("tools");
        let prompt = context.remove("add_generation_prompt").is_some();
        let rendered = template(case["template"].as_str().unwrap())
            .and_then(|template| template.render(&messages, tools.as_ref(), prompt, &context));
        let same = match (&rendered, &case["expected"]) {
            (Ok(text), Value::String(expected)) => text == expected,
            (Err(_), Value::Null) => true,
            _ => false,
        };
        if !same {
            let rendered = rendered.unwrap_or_else(|error| format!("ERROR {error}"));
            wrong.push(format!(
                "{}\n  expected {:?} {}\n  found    {rendered:?}",
                case["name"],
                case["expected"].as_str(),
                case["raises"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{}\n{} differ", wrong.join("\n"), wrong.len());
}

#[test]
fn templates_of_released_models_render_as_in_transformers() {
    let Some(data) = shared("data") else { return };
    let text = std::fs::read_to_string(data.join("chat_template_cases.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["today"], "2026-11-22");
    let (mut same, mut raise, mut either) = (0, 0, 0);
    for case in list(&file["cases"]) {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(data.join(name)).unwrap();
        let conversation = &file["conversations"][case["conversation"].as_str().unwrap()];
        let prompt = conversation["add_generation_prompt"].as_bool().unwrap();
        let context = conversation["context"].as_object().unwrap();
        let rendered = template(&source).unwrap().render(
            &list(&conversation["messages"]),
            conversation.get("tools"),
            prompt,
            context,
        );
        let is_text = |wanted: &Value| wanted.as_str().map(str::to_owned);
        match (rendered, is_text(&case["expected"])) {
            (Ok(text), Some(expected)) => {
                assert_eq!(text, expected, "{name} {}", case["conversation"]);
                same += 1;
            }
            // transformers fails to write a generator as JSON there, which is no property of the conversation.
            (_, None) if case["raises"].as_str().unwrap().contains("generator") => either += 1,
            (Err(ChatError::Raised { message, .. }), None) => {
                assert_eq!(format!("TemplateError: {message}"), case["raises"].as_str().unwrap());
                raise += 1;
            }
            (Err(_), None) => raise += 1,
            (found, expected) => panic!("{name} {}: {found:?}, expected {expected:?}", case["conversation"]),
        }
    }
    assert_eq!((same, raise, either), (234, 22, 4));
}

#[test]
fn what_fails_is_told_with_file_line_and_reason() {
    let message = |source: &str| render(source).unwrap_err().to_string();
    assert_eq!(message("a\n{% if %}"), "test.jinja:2: syntax error: unexpected end of block");
    assert_eq!(
        message("\n\n{{ raise_exception('only ' ~ messages[0].role) }}"),
        "test.jinja:3: the template refuses the conversation: only user"
    );
    assert_eq!(message("\n{{ nothing.a }}"), "test.jinja:2: undefined value");
    let raised = "{% macro m() %}{{ raise_exception('x') }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(raised), Err(ChatError::Raised { message, .. }) if message == "x"));
}

#[test]
fn a_template_without_end_is_stopped() {
    let hostile = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ 'a' * 99999999999 }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
        "{% set s = 'ab' * 10000000 %}{% for i in range(99999) %}{% set t = s.replace('a', 'bbb') %}{% endfor %}",
        "{% set s = 'ab' * 10000000 %}{% for i in range(99999) %}{% set t = s.split('a') %}{% endfor %}",
        "{% set s = 'ab' * 10000000 %}{% for i in range(99999) %}{% set t = s.strip() %}{% endfor %}",
        "{% set ns = namespace(l=1) %}{% for a in range(999) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ messages | tojson(indent=1000) }}{% endfor %}",
    ];
    for source in hostile {
        let error = render(source).unwrap_err();
        assert!(matches!(error, ChatError::TooMuchWork { .. }), "{source}: {error}");
    }
    for source in [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l|tojson }}",
        &"{% if true %}".repeat(100_000),
        &format!("{{{{ {} }}}}", "(".repeat(100_000)),
        "{{ strftime_now(1) }}",
        "{% include 'default' %}",
    ] {
        assert!(render(source).is_err(), "{source:.60}");
    }
}

#[test]
fn the_template_is_found_where_transformers_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let rendered = |tools: Option<&Value>| {
        ChatTemplate::load(folder.path()).unwrap().unwrap().render(&user(), tools, false, &Map::new())
    };
    let tools = json!([{"type": "function"}]);
    assert!(ChatTemplate::load(folder.path()).unwrap().is_none());
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null}"#);
    assert!(ChatTemplate::load(folder.path()).unwrap().is_none());

    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "chat_template": "one{{ bos_token }}"}"#);
    assert_eq!(rendered(Some(&tools)).unwrap(), "one<s>");

    let two = json!({"chat_template": [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"},
    ]});
    write("tokenizer_config.json", &two.to_string());
    assert_eq!(rendered(None).unwrap(), "plain");
    assert_eq!(rendered(Some(&tools)).unwrap(), "tools");
    assert_eq!(rendered(Some(&Value::Null)).unwrap(), "plain");

    write("chat_template.jinja", "file");
    assert_eq!(rendered(Some(&tools)).unwrap(), "file");
    write("additional_chat_templates/tool_use.jinja", "more");
    assert_eq!(rendered(Some(&tools)).unwrap(), "more");
    assert_eq!(rendered(None).unwrap(), "file");
}

#[test]
fn a_list_without_a_default_and_wrong_configs_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        std::fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
        ChatTemplate::load(folder.path())
    };
    let other = load(r#"{"chat_template": [{"name": "rag", "template": "x"}]}"#).unwrap().unwrap();
    let error = other.render(&user(), None, false, &Map::new()).unwrap_err();
    assert!(matches!(&error, ChatError::NoDefault { names, .. } if names == &["rag"]), "{error}");
    for text in [r#"{"chat_template": 1}"#, r#"{"chat_template": [{"name": 1}]}"#, "{", "[]", "", r#"{"a": 1, "a": 2}"#]
    {
        assert!(matches!(load(text), Err(ChatError::Config { .. })), "{text}");
    }
}

#[test]
fn what_transformers_refuses_before_rendering_is_refused() {
    let template = template("{{ messages }}").unwrap();
    for (messages, tools) in [(vec![json!("a")], json!(null)), (user(), json!({})), (user(), json!(["f"]))] {
        let error = template.render(&messages, Some(&tools), false, &Map::new()).unwrap_err();
        assert!(matches!(error, ChatError::Conversation { .. }), "{error}");
    }
}
