//! Against a server on loopback that speaks as the hub does.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::Hub;
use crate::load::{Model, shipped_pair};
use crate::model_id::ModelId;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, `owner/name`, whose large files lie on another host.
struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Only this token may see it.
    token: Option<String>,
    /// Connections that break after so many bytes of a large file.
    breaks: Vec<usize>,
    /// Large files that come with a byte changed.
    changed: usize,
    /// ETags of small files are no digests.
    own_etags: bool,
    /// Where large files lie, instead of this server.
    elsewhere: Option<String>,
    /// The server behind ignores ranges.
    no_ranges: bool,
    /// Method, path and range of each request.
    log: Vec<String>,
}

struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Server {
    fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state, port));
            }
        });
        Self { port, state }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic"));
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("no panic").log)
    }

    fn hub(&self, cache: &Path) -> Hub {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        Hub { endpoint, cache: cache.to_owned(), token: None, offline: false }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines.first()?.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Some(Asked { method, path, headers })
}

/// One request a connection.
fn serve(stream: TcpStream, state: &Mutex<State>, port: u16) {
    let mut reader = BufReader::new(stream);
    let Some(asked) = read(&mut reader) else { return };
    let mut state = state.lock().expect("no panic");
    let range = asked.headers.get("range").cloned().unwrap_or_default();
    state.log.push(format!("{} {} {range}", asked.method, asked.path).trim_end().to_owned());
    let mut answer = |status: &str, headers: &str, body: &[u8], claimed: usize| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {claimed}\r\nConnection: close\r\n{headers}\r\n");
        let body = if asked.method == "HEAD" { &[][..] } else { body };
        let _ = reader.get_mut().write_all(&[head.as_bytes(), body].concat());
    };
    let behind = asked.path.strip_prefix("/behind/").map(str::to_owned);
    // The hub's own token is no business of the host behind it.
    let expected = if behind.is_some() { None } else { state.token.clone() };
    let brought = asked.headers.get("authorization").cloned();
    if behind.is_some() && brought.is_some() || brought != expected.map(|token| format!("Bearer {token}")) {
        return answer("401 Unauthorized", "", b"", 0);
    }
    if let Some(name) = behind {
        let mut file = state.files[&name].clone();
        if range.is_empty() && state.changed > 0 {
            state.changed -= 1;
            file[5] ^= 1;
        }
        let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
        let start = if state.no_ranges { 0 } else { start };
        let (body, status) = (&file[start..], if start > 0 { "206 Partial Content" } else { "200 OK" });
        let sent = state.breaks.pop().unwrap_or(usize::MAX).min(body.len());
        return answer(status, "", &body[..sent], body.len());
    }
    if asked.path == "/api/models/owner/name/revision/main" {
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return answer("200 OK", "", body.as_bytes(), body.len());
    }
    let name = asked.path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/")).map(str::to_owned);
    let Some((name, file)) = name.and_then(|name| Some((name.clone(), state.files.get(&name)?))) else {
        return answer("404 Not Found", "", b"", 0);
    };
    let large = file.len() > 100_000;
    let (algorithm, head) =
        if large { (&SHA256, String::new()) } else { (&SHA1_FOR_LEGACY_USE_ONLY, format!("blob {}\0", file.len())) };
    let digest = ring::digest::digest(algorithm, &[head.as_bytes(), file].concat());
    let etag: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if large {
        // A large file: what it is says the hub, where it is another host.
        let host = state.elsewhere.clone().unwrap_or_else(|| format!("http://localhost:{port}"));
        let headers =
            format!("Location: {host}/behind/{name}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\n", file.len());
        return answer("302 Found", &headers, b"", 0);
    }
    let etag = if state.own_etags { format!("{}-{}", name.len(), file.len()) } else { etag };
    answer("200 OK", &format!("ETag: W/\"{etag}\"\r\n"), file, file.len());
}

/// The shipped drafter's files.
fn files() -> BTreeMap<String, Vec<u8>> {
    let folder = shipped_pair().expect("a clone of the repository").join("drafter");
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let mut files: BTreeMap<_, _> =
        names.into_iter().filter_map(|name| Some((name.to_owned(), std::fs::read(folder.join(name)).ok()?))).collect();
    files.insert("README.md".into(), b"not wanted".to_vec());
    files
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("cascadia-hub-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn id(text: &str) -> ModelId {
    ModelId::of(Path::new(text)).expect("a name of the hub")
}

#[test]
fn a_model_is_fetched_once_gone_on_with_and_loaded() {
    let (server, cache) = (Server::start(files()), Folder::new("whole"));
    let size = files()["model.safetensors"].len();
    server.set(|state| state.breaks = vec![70_000, 0, 50_000]);
    let hub = server.hub(&cache.0);
    assert_eq!(hub.cached(&id("owner/name")), None);
    let mut heard = Vec::new();
    let mut report = |file: &str, done: u64, total: u64| heard.push((file.to_owned(), done, total));
    let folder = hub.fetch(&id("owner/name"), &mut report).expect("it comes");
    assert!(folder.ends_with(format!("models--owner--name/snapshots/{COMMIT}")) && !folder.join("README.md").exists());
    let log = server.log();
    let large: Vec<_> = log.iter().filter(|line| line.starts_with("GET /behind/")).collect();
    let ranges = ["", " bytes=50000-", " bytes=50000-", " bytes=120000-"];
    assert_eq!(large, ranges.map(|range| format!("GET /behind/model.safetensors{range}")).iter().collect::<Vec<_>>());
    assert!(heard.contains(&("model.safetensors".into(), size as u64, size as u64)));
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file").len(), size);
    Model::load(&folder, "q8_0").expect("what came is the model");
    // From now on nobody is asked for bytes, and offline nobody at all.
    hub.fetch(&id("owner/name"), &mut |_, _, _| {}).expect("it is here");
    assert_eq!(server.log(), ["GET /api/models/owner/name/revision/main"]);
    // Nor is anything written where all is there, as in a cache that others filled and that is mounted to be read.
    let list = folder.join(".cascadia-whole");
    std::fs::remove_file(&list).expect("it was written");
    hub.fetch(&id("owner/name"), &mut |_, _, _| {}).expect("it is here");
    assert!(!list.exists());
    server.log();
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(offline.fetch(&id("owner/name"), &mut |_, _, _| {}).expect("it is here"), folder);
    let unreachable = Hub { endpoint: "http://127.0.0.1:1".into(), ..hub };
    assert_eq!(unreachable.fetch(&id("owner/name"), &mut |_, _, _| {}).expect("the cached one"), folder);
    assert_eq!(server.log(), [""; 0]);
}

#[test]
fn a_server_without_ranges_sends_all_again_and_one_that_always_breaks_is_given_up() {
    let (server, cache) = (Server::start(files()), Folder::new("breaks"));
    server.set(|state| (state.breaks, state.no_ranges) = (vec![40_000], true));
    let folder = server.hub(&cache.0).fetch(&id("owner/name"), &mut |_, _, _| {}).expect("it comes");
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("a file"), files()["model.safetensors"]);
    let cache = Folder::new("gives-up");
    server.set(|state| (state.breaks, state.no_ranges) = (vec![0; 20], false));
    let error =
        server.hub(&cache.0).fetch(&id("owner/name"), &mut |_, _, _| {}).expect_err("nothing comes").to_string();
    assert!(error.contains("owner/name") && error.contains("HF_ENDPOINT") && !error.contains('\n'), "{error}");
    // Another start goes on with the files that are there.
    server.set(|state| state.breaks.clear());
    server.log();
    server.hub(&cache.0).fetch(&id("owner/name"), &mut |_, _, _| {}).expect("it comes");
    assert!(!server.log().iter().any(|line| line.contains("tokenizer.json")));
}

/// What is left of another file, or of a broken disk, is no part of the model.
#[test]
fn contents_are_what_the_hub_announces() {
    let (server, cache) = (Server::start(files()), Folder::new("contents"));
    let hub = server.hub(&cache.0);
    let folder = hub.fetch(&id("owner/name"), &mut |_, _, _| {}).expect("it comes");
    let right = files()["model.safetensors"].clone();
    let blob = std::fs::canonicalize(folder.join("model.safetensors")).expect("a link to a blob");
    let incomplete = blob.with_extension("incomplete");
    for wrong in [vec![7; 1000], vec![7; right.len()], vec![7; right.len() + 1]] {
        std::fs::remove_dir_all(&folder).expect("it goes");
        std::fs::remove_file(&blob).expect("it goes");
        std::fs::write(&incomplete, wrong).expect("room");
        hub.fetch(&id("owner/name"), &mut |_, _, _| {}).expect("it comes once more");
        assert!(std::fs::read(folder.join("model.safetensors")).expect("a file") == right && !incomplete.exists());
    }
    // Once is an accident, twice is no download.
    let cache = Folder::new("changed");
    server.set(|state| state.changed = 1);
    let folder = server.hub(&cache.0).fetch(&id("owner/name"), &mut |_, _, _| {}).expect("the second is right");
    assert!(std::fs::read(folder.join("model.safetensors")).expect("a file") == right);
    let cache = Folder::new("changed-twice");
    server.set(|state| state.changed = 2);
    let error = server.hub(&cache.0).fetch(&id("owner/name"), &mut |_, _, _| {}).expect_err("wrong").to_string();
    assert!(error.contains("model.safetensors of owner/name") && error.contains("another content"), "{error}");
    assert_eq!(server.hub(&cache.0).cached(&id("owner/name")), None, "half a model is none");
}

/// A mirror may have ETags of its own: then somebody has to know that nothing was checked.
#[tokio::test]
async fn what_cannot_be_checked_is_named() {
    let (server, cache) = (Server::start(files()), Folder::new("unchecked"));
    let fetch = async |cache: &Path| {
        let fetched = server.hub(cache).download(&id("owner/name"), &mut |_, _, _| {}).await.expect("it comes");
        fetched.unchecked
    };
    assert_eq!(fetch(&cache.0).await, [""; 0]);
    server.set(|state| state.own_etags = true);
    let cache = Folder::new("unchecked-own");
    let mut unchecked = fetch(&cache.0).await;
    unchecked.sort();
    assert_eq!(unchecked, ["config.json", "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(fetch(&cache.0).await, [""; 0], "nothing came");
}

/// Whoever is between could change a model on its way, and read the token.
#[test]
fn nothing_is_asked_in_the_clear_but_this_machine() {
    let endpoint = |address: &str| {
        Hub::of_environment(|name| match name {
            "HOME" => Some("/home/ann".to_owned()),
            "HF_ENDPOINT" => Some(address.to_owned()),
            _ => None,
        })
    };
    for address in ["https://hub.example", "http://127.0.0.1:8080", "http://localhost:1/hub", "http://[::1]:1"] {
        assert!(endpoint(address).is_ok(), "{address}");
    }
    for address in ["http://hub.example", "HTTP://192.0.2.1:80", "http://localhost.example", "http://127.0.0.1.example"]
    {
        let error = endpoint(address).expect_err(address).to_string();
        assert!(error.contains(address) && error.contains("use https") && error.contains("HF_ENDPOINT"), "{error}");
    }
    // Nor where the hub sends us.
    let (server, cache) = (Server::start(files()), Folder::new("clear"));
    server.set(|state| state.elsewhere = Some("http://192.0.2.1".into()));
    let error = server.hub(&cache.0).fetch(&id("owner/name"), &mut |_, _, _| {}).expect_err("in the clear").to_string();
    assert!(error.contains("http://192.0.2.1/behind/model.safetensors is plain http"), "{error}");
}

/// Within a runtime, as a node fetches.
#[tokio::test]
async fn refusals_name_the_cure() {
    let (server, cache) = (Server::start(files()), Folder::new("refused"));
    let refused = |hub: &Hub, name: &str| hub.fetch(&id(name), &mut |_, _, _| {}).expect_err("no model").to_string();
    let error = refused(&server.hub(&cache.0), "owner/other");
    assert!(error.contains("has no owner/other") && error.contains("no such path"), "{error}");
    server.set(|state| state.token = Some("secret".into()));
    let error = refused(&server.hub(&cache.0), "owner/name");
    assert!(error.contains("HF_TOKEN") && error.contains("401"), "{error}");
    let with_token = Hub { token: Some("secret".into()), ..server.hub(&cache.0) };
    with_token.fetch(&id("owner/name"), &mut |_, _, _| {}).expect("the token goes to the hub, and to no other host");
    let cache = Folder::new("offline");
    let error = refused(&Hub { offline: true, ..server.hub(&cache.0) }, "owner/name");
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("cascadia-hub-offline"), "{error}");
    // So does a check, which asks nobody; what may be fetched later is no fault.
    let checked = Hub { offline: true, ..server.hub(&cache.0) }.cached_or_to_fetch(&id("owner/name"));
    assert!(checked.is_err_and(|error| error.to_string().contains("HF_HUB_OFFLINE")));
    assert_eq!(server.hub(&cache.0).cached_or_to_fetch(&id("owner/name")).expect("no fault"), None);
    let error = refused(&Hub { endpoint: "http://127.0.0.1:1".into(), ..server.hub(&cache.0) }, "owner/name");
    assert!(error.contains("cannot fetch owner/name from http://127.0.0.1:1"), "{error}");
}

#[test]
fn a_file_of_a_repository_of_gguf_files_is_named() {
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/gguf/qwen3.gguf");
    let bytes = std::fs::read(gguf).expect("a fixture");
    let names = ["tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf"];
    let server = Server::start(names.into_iter().map(|name| (name.to_owned(), bytes.clone())).collect());
    let cache = Folder::new("gguf");
    let hub = server.hub(&cache.0);
    let file = hub.fetch(&id("owner/name:q8_0"), &mut |_, _, _| {}).expect("the one with Q8_0 in its name");
    assert!(file.ends_with("tiny-Q8_0.gguf"));
    assert_eq!(std::fs::read(&file).expect("a file"), bytes);
    assert_eq!(hub.cached(&id("owner/name:tiny-Q8_0.gguf")), Some(file));
    for (name, problem) in [
        ("owner/name", "name one, as owner/name:tiny"),
        ("owner/name:q5", "no GGUF file `q5`"),
        ("owner/name:q", "several"),
    ] {
        let error = hub.fetch(&id(name), &mut |_, _, _| {}).expect_err("no file").to_string();
        assert!(error.contains(problem) && error.contains("tiny-Q4_K_M.gguf"), "{error}");
    }
}

#[test]
fn names_of_the_hub_and_paths() {
    let plain = id("meta-llama/Llama-3.2-1B");
    assert_eq!(
        (plain.repository.as_str(), plain.revision.as_str(), plain.served()),
        ("meta-llama/Llama-3.2-1B", "main", "Llama-3.2-1B")
    );
    let whole = id("o/n@refs/pr/3:model-Q4_K_M.gguf");
    assert_eq!((whole.revision.as_str(), whole.served()), ("refs/pr/3", "model-Q4_K_M"));
    for text in [plain, whole, id("o/n:Q4_K_M")] {
        assert_eq!(id(&text.to_string()), text);
    }
    for path in ["/o/n", "./o", "o", "o/n/m", "../o/n", "o/..", "o/n.gguf", "o/n:../x", "o/n@", "o/n:", ".o/n"] {
        assert_eq!(ModelId::of(Path::new(path)), None, "{path}");
    }
}

#[test]
fn variables_of_hugging_faces_tools() {
    let hub = |pairs: &[(&str, &str)]| {
        let pairs: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Hub::of_environment(|name| pairs.get(name).cloned())
    };
    let plain = hub(&[("HOME", "/home/ann")]).expect("a home");
    assert_eq!((plain.endpoint.as_str(), plain.offline), ("https://huggingface.co", false));
    assert_eq!(plain.cache, Path::new("/home/ann/.cache/huggingface/hub"));
    let set = hub(&[
        ("HF_HOME", "/models"),
        ("HF_ENDPOINT", "http://mirror/"),
        ("HF_TOKEN", " t\n"),
        ("HF_HUB_OFFLINE", "1"),
    ]);
    let set = set.expect("a home");
    assert_eq!((set.endpoint.as_str(), set.cache.as_path()), ("http://mirror", Path::new("/models/hub")));
    assert_eq!((set.token.as_deref(), set.offline), (Some("t"), true));
    assert!(hub(&[]).is_err_and(|error| error.to_string().contains("HF_HOME")));
}
