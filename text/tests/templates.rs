//! Chat templates in the shapes that are in use, against what transformers makes of them (`templates/record.py`).

use cascadia_core::commit::Message;
use cascadia_text::{ChatTemplate, ModelFiles, SpecialTokens, TemplateError, Tokenizer, toy};
use serde_json::{Value, json};

const TEMPLATES: [(&str, &str); 7] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("oddities", include_str!("templates/oddities.jinja")),
    ("phi", include_str!("templates/phi.jinja")),
    ("zephyr", include_str!("templates/zephyr.jinja")),
];

fn special() -> SpecialTokens {
    SpecialTokens::of(&json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}}))
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, special()).unwrap()
}

fn shape(name: &str) -> &'static str {
    TEMPLATES.iter().find(|(known, _)| *known == name).unwrap().1
}

fn hello() -> Vec<Message> {
    vec![Message::new("user", "Hello")]
}

fn render(source: &str) -> String {
    template(source).render(&hello(), true, None).unwrap()
}

#[test]
fn real_templates_render_as_in_python() {
    let expected: Vec<Value> = serde_json::from_str(include_str!("templates/expected.json")).unwrap();
    assert_eq!(expected.len(), 3 * TEMPLATES.len());
    for row in expected {
        let (_, source) = TEMPLATES.iter().find(|(name, _)| row["template"] == *name).unwrap();
        let turn = |turn: &Value| Message::new(turn["role"].as_str().unwrap(), turn["content"].as_str().unwrap());
        let messages: Vec<Message> = row["messages"].as_array().unwrap().iter().map(turn).collect();
        let rendered = template(source).render(&messages, true, None);
        let wanted = match (&row["text"], &row["raised"]) {
            (Value::String(text), _) => Ok(text.clone()),
            (_, Value::String(raised)) => Err(TemplateError::Raised(raised.clone())),
            _ => panic!("{row}"),
        };
        assert_eq!(rendered, wanted, "{} {}", row["template"], row["case"]);
    }
}

#[test]
fn the_known_shapes_by_eye() {
    assert_eq!(
        template(shape("chatml")).render(&hello(), true, None).unwrap(),
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(template(shape("mistral")).render(&hello(), true, None).unwrap(), "<s>[INST] Hello[/INST]");
    assert_eq!(template(shape("zephyr")).render(&hello(), true, None).unwrap(), "<|user|>\nHello</s>\n<|assistant|>\n");
    assert_eq!(template(shape("zephyr")).render(&hello(), false, None).unwrap(), "<|user|>\nHello</s>\n");
}

#[test]
fn the_date_is_an_argument() {
    let llama = template(shape("llama3"));
    let date = |now| {
        let text = llama.render(&hello(), true, now).unwrap();
        text.split("Today Date: ").nth(1).unwrap().split('\n').next().unwrap().to_owned()
    };
    assert_eq!(date(None), "26 Jul 2024");
    assert_eq!(date(Some(1_735_689_599)), "31 Dec 2024");
    let unguarded = template("{{ strftime_now('%Y-%m-%d') }}");
    assert_eq!(unguarded.render(&hello(), true, Some(0)).unwrap(), "1970-01-01");
    let failed = unguarded.render(&hello(), true, None).unwrap_err().to_string();
    assert!(failed.contains("strftime_now"), "{failed}");
}

#[test]
fn tojson_is_pythons() {
    assert_eq!(
        render(r#"{{ {"b": [1, 2.5, true, none], "a": "é\"<&>\n"} | tojson }}"#),
        r#"{"b": [1, 2.5, true, null], "a": "é\"<&>\n"}"#
    );
    assert_eq!(
        render(r#"{{ {"b": 1, "a": {"c": []}} | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}"#),
        "{\n  \"a\": {\n    \"c\": []\n  },\n  \"b\": 1\n}"
    );
    assert_eq!(
        render(r#"{{ ["é😀"] | tojson(ensure_ascii=true, separators=(",", ":")) }}"#),
        r#"["\u00e9\ud83d\ude00"]"#
    );
}

/// Found with the template of Qwen3-Coder; jinja2 says the same of each.
#[test]
fn what_is_iterable_is_pythons() {
    let values = ["none", "nothing", "'ab'", "[1]", "{'a': 1}", "1", "true", "range(2)", "messages[0]", "tools"];
    for (test, wanted) in [
        ("iterable", [false, true, true, true, true, false, false, true, true, false]),
        ("sequence", [false, true, true, true, true, false, false, true, true, false]),
        ("mapping", [false, false, false, false, true, false, false, false, true, false]),
    ] {
        for (value, wanted) in values.into_iter().zip(wanted) {
            let wanted = if wanted { "True" } else { "False" };
            assert_eq!(render(&format!("{{{{ {value} is {test} }}}}")), wanted, "{value} is {test}");
        }
    }
    assert_eq!(render("{% if tools is iterable and tools | length > 0 %}tools{% else %}none{% endif %}"), "none");
}

#[test]
fn failures_say_what_and_where() {
    let error = ChatTemplate::new("a\n{% if %}", special()).unwrap_err();
    assert!(matches!(&error, TemplateError::Syntax(what) if what.contains("line 2")), "{error}");
    let error = template("{{ messages[0].name.first }}").render(&hello(), true, None).unwrap_err();
    assert!(matches!(&error, TemplateError::Failed(what) if what.contains("line 1")), "{error}");
    let error = template("{% macro m() %}{{ raise_exception('no ' ~ 'way') }}{% endmacro %}{{ m() }}")
        .render(&hello(), true, None)
        .unwrap_err();
    assert_eq!(error.to_string(), "the chat template refuses these messages: no way");
}

#[test]
fn a_template_that_does_too_much_is_one_sentence() {
    let refused = |source: &str| template(source).render(&hello(), true, None).unwrap_err();
    let nested = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    for endless in [
        nested.to_owned(),
        // Each step is short, what it reads is not.
        "{% set x = 'ab' * 1000000 %}{% for i in range(100000) %}{% if x.endswith('a') %}{% endif %}{% endfor %}".into(),
        "{% set x = 'ab' * 1000000 %}{% for i in range(100000) %}{% if x.find('c') %}{% endif %}{% endfor %}".into(),
        // One list, written over and over.
        "{% set it = namespace(x=[1]) %}{% for i in range(60) %}{% set it.x = [it.x, it.x] %}{% endfor %}{{ it.x | tojson }}"
            .into(),
        "{{ [[1]] | tojson(indent=1000000000) }}".into(),
    ] {
        let error = refused(&endless);
        assert!(matches!(error, TemplateError::TooMuchWork(_)), "{endless}: {error}");
        let said = error.to_string();
        assert!(said.contains("2000000 steps") && said.contains("shorten the conversation"), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }
    let error = refused("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}");
    assert_eq!(error, TemplateError::TooMuchText(16 << 20));
    assert!(error.to_string().contains("makes more than 16777216 bytes"), "{error}");
    let deep = "{% set it = namespace(x=[]) %}{% for i in range(1500) %}{% set it.x = [it.x] %}{% endfor %}{{ it.x | tojson }}";
    assert!(refused(deep).to_string().contains("too deeply nested"), "{}", refused(deep));
}

/// A stack that ends would end the process.
#[test]
fn lists_in_lists_are_no_end_of_the_node() {
    let deep = |ending: &str| {
        let nest = "{% for j in range(150) %}{% for i in range(1000) %}{% set it.x = [it.x] %}{% endfor %}{% endfor %}";
        let source = format!("{{% set it = namespace(x=[]) %}}{nest}{{{{ {ending} }}}}");
        template(&source).render(&hello(), true, None)
    };
    assert_eq!(deep("'dropped'").unwrap(), "dropped");
    assert_eq!(deep("it.x == [it.x]").unwrap(), "False");
    assert_eq!(deep("it.x | string | length").unwrap(), "300002");
}

/// The bound is for templates that do not end: the longest conversations that a context holds are far from it.
#[test]
fn long_conversations_are_rendered() {
    let turns = |count: usize, content: &str| -> Vec<Message> {
        let turn = |i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, content);
        (0..count).map(turn).collect()
    };
    for (name, source) in TEMPLATES {
        for conversation in [turns(5_001, "And then?"), turns(101, &"Once upon a time ".repeat(2_400))] {
            let rendered = template(source).render(&conversation, true, None);
            assert!(rendered.is_ok_and(|text| text.len() > 45_000), "{name}, {} messages", conversation.len());
        }
    }
}

#[test]
fn where_the_template_is_found() {
    let of = |configured: Value, file: Option<&str>| {
        let mut files: ModelFiles = toy::byte_level_files();
        files.tokenizer_config = json!({"chat_template": configured});
        files.chat_template = file.map(str::to_owned);
        let tokenizer = Tokenizer::new(&files).unwrap();
        tokenizer.chat_template().map_err(Clone::clone).map(|t| t.render(&hello(), true, None).unwrap())
    };
    let named =
        |names: &[&str]| names.iter().map(|n| json!({"name": n, "template": format!("from {n}")})).collect::<Value>();
    assert_eq!(of(json!("configured"), None).unwrap(), "configured");
    assert_eq!(of(json!("configured"), Some("file")).unwrap(), "file");
    assert_eq!(of(named(&["tool_use", "default"]), None).unwrap(), "from default");
    assert_eq!(of(named(&["rag"]), None).unwrap(), "from rag");
    assert_eq!(of(named(&["rag", "tool_use"]), None).unwrap_err(), TemplateError::NoDefault("rag, tool_use".into()));
    assert_eq!(of(Value::Null, None).unwrap_err(), TemplateError::Missing);
    assert!(matches!(of(json!("{% nonsense %}"), None).unwrap_err(), TemplateError::Syntax(_)));
}
