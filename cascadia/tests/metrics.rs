//! Metrics as their readers see them: the table in docs/metrics.md, `promtool`, and a real Prometheus that scrapes real
//! processes and has data for every query of every dashboard.

mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use real::{Etcd, PATIENCE, Process, cascadia, etcd, exchange, folder, free_address, node, ready, wait_for};
use serde_json::Value;

const NEEDED: &str = "these tests need prometheus and promtool on the PATH: `tools/test` installs them";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn observability(path: &str) -> PathBuf {
    repository("deploy/observability").join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The head and the body of a page.
fn page(address: &str, path: &str) -> std::io::Result<(String, String)> {
    exchange(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"))
}

/// The body of a page that is there.
fn get(address: &str, path: &str) -> String {
    let (head, body) = page(address, path).expect("the server answers");
    assert!(head.contains(" 200 "), "{path}: {head}\n{body}");
    body
}

/// A router, a drafter and an expert, each a process, and clients that ask all the time.
struct Cluster {
    server: String,
    http: String,
    stop: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<()>>,
    _nodes: [Process; 3],
    _etcd: Etcd,
}

impl Cluster {
    fn start() -> Self {
        let etcd = etcd();
        let (server, http) = (free_address(), free_address());
        let mut router = cascadia();
        router.args(["router", "--id", "router-1", "--listen", &server, "--http", &http, "--etcd", &etcd.address]);
        let nodes = [
            Process(router.stdout(Stdio::null()).spawn().expect("the binary runs")),
            node("expert", "expert-1", &free_address(), &etcd),
            node("drafter", "drafter-1", &free_address(), &etcd),
        ];
        wait_for(&server, |status| ready(status, "expert") == 1 && ready(status, "drafter") == 1);
        Self { server, http, stop: Arc::default(), clients: Vec::new(), _nodes: nodes, _etcd: etcd }
    }

    /// Asks on every strategy, again and again, for two tenants.
    fn ask(&mut self) {
        for strategy in ["speculative", "speculative_cascade", "expert", "cascade_query"] {
            let (server, stop) = (self.server.clone(), self.stop.clone());
            self.clients.push(std::thread::spawn(move || {
                let tenants = ["acme", "globex"].iter().cycle();
                for tenant in tenants.take_while(|_| !stop.load(Relaxed)) {
                    let asked = ["--tenant", tenant, "--strategy", strategy, "--temperature", "0.7"];
                    let mut command = cascadia();
                    command.args(["generate", "--json", "--server", &server, "--max-tokens", "40"]).args(asked);
                    let output = command.arg("Ben has 36 stones. Dan takes 14 of them.").output().expect("it runs");
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                }
            }));
        }
    }

    /// Where each node's metrics are, by role.
    fn admin(&self) -> BTreeMap<String, String> {
        let status = wait_for(&self.server, |status| status["members"].as_array().is_some_and(|m| m.len() == 3));
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let members = status["members"].as_array().expect("members");
        members.iter().map(|member| (text(&member["role"]), text(&member["admin_address"]))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

/// What a metric is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

/// What a page of the older text format serves.
fn served(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name.into()).or_default().help = help.trim_end_matches('.').into();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name.into()).or_default().kind = kind.into();
        } else if let Some((series, labels)) = line.split_once('{') {
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let name = histogram.filter(|name| metrics.contains_key(*name)).unwrap_or(series);
            let labels = labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(key, _)| key.to_owned());
            let metric = metrics.get_mut(name).unwrap_or_else(|| panic!("{name} has no type"));
            metric.labels.extend(labels.filter(|key| key != "le"));
        }
    }
    metrics
}

/// The rows of the table for one role.
fn documented(table: &str, role: &str) -> BTreeMap<String, Metric> {
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = table.lines().filter(|line| line.starts_with("| `")).map(cells);
    let mut metrics = BTreeMap::new();
    for row in rows {
        let [name, kind, labels, unit, nodes, help, usage] = &row[..] else { panic!("a row of 7 cells: {row:?}") };
        let name = name.trim_matches('`').to_owned();
        for (end, means) in [("_seconds", "s"), ("_bytes_total", "bytes"), ("_ratio", "0 to 1"), ("_perc", "0 to 1")] {
            assert!(!name.ends_with(end) || unit == means, "{name} is in {means}, not in {unit}");
        }
        assert!(!usage.is_empty(), "{name}: what is it for?");
        if nodes == "all" || nodes.split(", ").any(|node| node == role) {
            let labels = labels.split(", ").map(|label| label.trim_matches('`')).filter(|label| !label.is_empty());
            let labels = labels.map(str::to_owned).collect();
            metrics.insert(name, Metric { kind: kind.clone(), labels, help: help.clone() });
        }
    }
    metrics
}

fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(observability("prometheus"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect(NEEDED);
    process.stdin.take().expect("piped").write_all(input.as_bytes()).expect("read");
    let output = process.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    // What the linter dislikes it says on stderr and by its status.
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn the_rules_keep_their_own_tests() {
    promtool(&["check", "rules", "rules.yaml"], "");
    promtool(&["check", "config", "prometheus.yml"], "");
    promtool(&["test", "rules", "tests.yaml"], "");
    // Every rule is tested: its name stands in a test.
    let (rules, tests) = (read(&observability("prometheus/rules.yaml")), read(&observability("prometheus/tests.yaml")));
    let named = |line: &str| {
        let line = line.trim().trim_start_matches("- ");
        line.strip_prefix("record: ").or_else(|| line.strip_prefix("alert: ")).map(str::to_owned)
    };
    for rule in rules.lines().filter_map(named) {
        assert!(tests.contains(&rule), "{rule} has no test in tests.yaml");
    }
}

/// A Prometheus with the shipped configuration, in a hurry.
struct Prometheus {
    address: String,
    folder: PathBuf,
    _process: Process,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Prometheus {
    fn start(router_admin: &str) -> Self {
        let folder = folder("prometheus");
        std::fs::create_dir_all(&folder).expect("a folder");
        let shipped = read(&observability("prometheus/prometheus.yml"));
        assert!(shipped.contains("http://127.0.0.1:9464/targets") && shipped.contains("15s"), "{shipped}");
        let config = shipped.replace("127.0.0.1:9464", router_admin).replace("15s", "1s");
        std::fs::write(folder.join("prometheus.yml"), config).expect("written");
        std::fs::copy(observability("prometheus/rules.yaml"), folder.join("rules.yaml")).expect("copied");
        let address = free_address();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .expect(NEEDED);
        let until = Instant::now() + PATIENCE;
        while !page(&address, "/-/ready").is_ok_and(|(head, _)| head.contains(" 200 ")) {
            assert!(Instant::now() < until, "prometheus is not ready within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { address, folder, _process: Process(process) }
    }

    /// The finite values of a query, by their labels.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = get(&self.address, &format!("/api/v1/query?query={escaped}"));
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let samples = answer["data"]["result"].as_array().expect("a vector").iter();
        let samples = samples.map(|sample| {
            let value = sample["value"][1].as_str().expect("a number in text").parse().expect("a number");
            (sample["metric"].clone(), value)
        });
        samples.filter(|(_, value): &(Value, f64)| value.is_finite()).collect()
    }

    /// Waits until a query has a finite value.
    fn wait_for(&self, what: &str, query: &str) {
        let until = Instant::now() + PATIENCE;
        while self.query(query).is_empty() {
            assert!(Instant::now() < until, "{what} has no data within {PATIENCE:?}: {query}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// A dashboard's queries, each with its panel's title, and its variables with a value for each.
fn queries(board: &Value) -> Vec<(String, String)> {
    let variables = board["templating"]["list"].as_array().expect("variables").iter();
    let variables: Vec<&str> = variables.filter(|v| v["type"] == "query").filter_map(|v| v["name"].as_str()).collect();
    let panels = board["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().expect("targets").iter();
        targets.map(move |target| (title.clone(), target["expr"].as_str().expect("a query").to_owned()))
    });
    let set = |(title, query): (String, String)| {
        let mut query = query.replace("$__rate_interval", "15s");
        for variable in &variables {
            query = query.replace(&format!("${variable}"), ".*");
        }
        assert!(!query.contains('$'), "{title}: a variable is not declared: {query}");
        (title, query)
    };
    targets.map(set).collect()
}

/// What the variables of a dashboard are filled from: (metric, label).
fn fillings(board: &Value) -> Vec<(String, String)> {
    let variables = board["templating"]["list"].as_array().expect("variables").iter();
    let filled = variables.filter(|variable| variable["type"] == "query").map(|variable| {
        let query = variable["query"]["query"].as_str().expect("a query");
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).expect("label_values");
        let (metric, label) = inner.split_once(", ").expect("a metric and a label");
        (metric.to_owned(), label.to_owned())
    });
    filled.collect()
}

#[test]
fn the_table_and_a_real_prometheus_agree_with_a_running_cluster() {
    let mut cluster = Cluster::start();
    let admin = cluster.admin();
    let prometheus = Prometheus::start(&admin["router"]);
    cluster.ask();

    // Prometheus finds every node by the router's word, and reads OpenMetrics.
    let until = Instant::now() + PATIENCE;
    loop {
        let up = prometheus.query(r#"up{job="cascadia"}"#);
        let names: BTreeSet<&str> = up.iter().filter_map(|(labels, _)| labels["instance"].as_str()).collect();
        if names == BTreeSet::from(["drafter-1", "expert-1", "router-1"]) && up.iter().all(|(_, value)| *value == 1.0) {
            break;
        }
        assert!(Instant::now() < until, "not all nodes are scraped: {up:?}");
        std::thread::sleep(Duration::from_millis(300));
    }

    // What happened is what is counted.
    get(&cluster.http, "/v1/models");
    for query in [
        r#"cascadia_http_requests_total{route="/v1/models", status="200"} == 1"#,
        r#"cascadia_tenant_requests_total{tenant="globex", outcome="success"} > 0"#,
        r#"cascadia_spec_decode_num_deferred_tokens_total{rule="token_v3"} > 0"#,
        "sum(cascadia_verify_answers_total) > 0",
        "sum(cascadia_draft_bytes_total) > 0",
    ] {
        prometheus.wait_for("a count", query);
    }

    // Every dashboard has data in every panel.
    for file in ["cluster", "drafters", "experts", "tenant"] {
        let board: Value =
            serde_json::from_str(&read(&observability(&format!("grafana/{file}.json")))).expect("a dashboard");
        for (metric, label) in fillings(&board) {
            prometheus.wait_for(file, &format!("count by ({label}) ({metric}{{{label}!=\"\"}})"));
        }
        for (panel, query) in queries(&board) {
            prometheus.wait_for(&format!("{file}: {panel}"), &query);
        }
    }

    // Every rule is evaluated without complaint, and every recorded one has data.
    let rules: Value = serde_json::from_str(&get(&prometheus.address, "/api/v1/rules")).expect("JSON");
    let groups = rules["data"]["groups"].as_array().expect("groups").iter();
    let rules: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array().expect("rules")).collect();
    assert!(rules.len() >= 20, "{rules:?}");
    for rule in rules {
        let name = rule["name"].as_str().expect("a name");
        assert_eq!(rule["health"], "ok", "{rule}");
        match rule["type"].as_str() {
            Some("recording") => prometheus.wait_for("a recorded rule", name),
            _ => assert_ne!(rule["state"], "firing", "all is well here: {rule}"),
        }
    }

    // The table has every metric, and no other.
    let table = read(&repository("docs/metrics.md"));
    for (role, address) in &admin {
        let page = get(address, "/metrics");
        promtool(&["check", "metrics"], &page);
        let (served, documented) = (served(&page), documented(&table, role));
        for (name, metric) in &served {
            assert_eq!(documented.get(name), Some(metric), "{name} of a {role}: docs/metrics.md, left, is not true");
        }
        for name in documented.keys() {
            assert!(served.contains_key(name), "{name} stands in docs/metrics.md and is not served by a {role}");
        }
    }
}
