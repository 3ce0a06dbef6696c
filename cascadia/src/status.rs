//! `cascadia status`: the cluster as a router sees it.

use cascadia_proto::v1;
use serde_json::{Value, json};

use crate::Outcome;
use crate::cli::StatusArgs;
use crate::client::Client;
use crate::columns::{Side, layout};

/// Runs the command.
///
/// # Errors
/// When the router cannot be reached.
pub async fn run(args: &StatusArgs) -> Outcome {
    let status = Client::connect(&args.server).await?.status().await?;
    if args.json {
        crate::print_line(&to_json(&status).to_string())?;
    } else {
        crate::print(&to_text(&status))?;
    }
    Ok(())
}

/// The status as tables.
#[must_use]
pub fn to_text(status: &v1::ClusterStatusResponse) -> String {
    let titles = [
        ("id", Side::Left),
        ("role", Side::Left),
        ("state", Side::Left),
        ("address", Side::Left),
        ("sessions", Side::Right),
        ("queued", Side::Right),
        ("running", Side::Right),
        ("kv free", Side::Right),
        ("batch", Side::Right),
        ("models", Side::Left),
    ];
    let members: Vec<Vec<String>> = status.members.iter().map(member).collect();
    let mut text = layout(&titles, &members);
    if status.members.iter().any(is_silent) {
        text.push_str(
            "silent: listed and not heard of yet; it loads its model (its admin listener says how far, at /status) or is away\n",
        );
    }
    if status.members.iter().any(|member| member.failing) {
        text.push_str("failing: it failed one session after another by its own fault, and gets no new ones for a while; its log says why\n");
    }
    text.push('\n');
    if status.pairs.is_empty() {
        text.push_str("no pair: nothing can be served until a drafter and an expert of one tokenizer are ready\n");
        return text;
    }
    let titles = [
        ("model", Side::Left),
        ("drafters", Side::Right),
        ("drafter fingerprint", Side::Left),
        ("experts", Side::Right),
        ("expert fingerprint", Side::Left),
    ];
    let pairs: Vec<Vec<String>> = status
        .pairs
        .iter()
        .map(|pair| {
            vec![
                pair.model.clone(),
                pair.drafters.to_string(),
                pair.drafter_fingerprint.clone(),
                pair.experts.to_string(),
                pair.expert_fingerprint.clone(),
            ]
        })
        .collect();
    text.push_str(&layout(&titles, &pairs));
    text
}

/// Where a static list says ready and the node has said nothing itself.
const SILENT: &str = "silent";

/// Where a node lives, and the router gives it no sessions all the same.
const FAILING: &str = "failing";

fn is_silent(member: &v1::Member) -> bool {
    member.load.is_none() && member.role != "router" && member.state == "ready"
}

fn member(member: &v1::Member) -> Vec<String> {
    let state = match member {
        member if is_silent(member) => SILENT,
        member if member.failing => FAILING,
        member => &member.state,
    };
    let mut row = vec![member.id.clone(), member.role.clone(), state.to_owned(), member.address.clone()];
    match &member.load {
        Some(load) => row.extend([
            load.sessions.to_string(),
            load.queued_tokens.to_string(),
            load.running_tokens.to_string(),
            share(load.kv_pages_free, load.kv_pages),
            format!("{:.0}%", 100.0 * load.batch_occupancy),
        ]),
        None => row.extend(std::iter::repeat_n("-".to_owned(), 5)),
    }
    row.push(member.models.join(", "));
    row
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.0}%", 100.0 * part as f64 / whole as f64) }
}

/// The status as one object.
#[must_use]
pub fn to_json(status: &v1::ClusterStatusResponse) -> Value {
    json!({
        "router": status.router,
        "revision": status.revision,
        "members": status.members.iter().map(|m| json!({
            "id": m.id,
            "role": m.role,
            "state": m.state,
            "address": m.address,
            "admin_address": m.admin_address,
            "models": m.models,
            "fingerprints": m.fingerprints,
            "instance": m.instance,
            "failing": m.failing,
            "load": m.load.as_ref().map(|l| json!({
                "sessions": l.sessions,
                "queued_tokens": l.queued_tokens,
                "running_tokens": l.running_tokens,
                "kv_pages_free": l.kv_pages_free,
                "kv_pages": l.kv_pages,
                "batch_occupancy": l.batch_occupancy,
            })),
        })).collect::<Vec<_>>(),
        "pairs": status.pairs.iter().map(|p| json!({
            "model": p.model,
            "drafter_fingerprint": p.drafter_fingerprint,
            "expert_fingerprint": p.expert_fingerprint,
            "drafters": p.drafters,
            "experts": p.experts,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::ClusterStatusResponse {
        let load = v1::MemberLoad {
            sessions: 2,
            queued_tokens: 30,
            running_tokens: 7,
            kv_pages_free: 3,
            kv_pages: 4,
            batch_occupancy: 0.5,
        };
        let node = |id: &str, role: &str, load| v1::Member {
            id: id.into(),
            role: role.into(),
            state: "ready".into(),
            address: "127.0.0.1:1".into(),
            models: vec!["demo".into()],
            load,
            ..Default::default()
        };
        v1::ClusterStatusResponse {
            members: vec![node("drafter-1", "drafter", Some(load)), node("router-1", "router", None)],
            pairs: vec![v1::Pair {
                model: "demo".into(),
                drafter_fingerprint: "d".into(),
                expert_fingerprint: "e".into(),
                drafters: 1,
                experts: 0,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn tables() {
        let text = to_text(&status());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("id         role     state  address"), "{text}");
        assert!(lines[1].contains("75%") && lines[1].ends_with("50%  demo"), "{text}");
        assert!(lines[2].contains('-'), "{text}");
        assert_eq!(lines.last().unwrap().split_whitespace().collect::<Vec<_>>(), ["demo", "1", "d", "0", "e"]);
    }

    #[test]
    fn a_node_that_says_nothing_is_not_called_ready() {
        let mut status = status();
        assert!(!to_text(&status).contains("silent"), "a router says nothing of itself");
        status.members[0].load = None;
        let text = to_text(&status);
        assert!(
            text.lines().nth(1).is_some_and(|line| line.contains("silent")) && text.contains("admin listener"),
            "{text}"
        );
    }

    #[test]
    fn a_failing_node_is_not_called_ready() {
        let mut status = status();
        status.members[0].failing = true;
        let text = to_text(&status);
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("failing")), "{text}");
        assert!(text.contains("one session after another"), "{text}");
        assert_eq!(to_json(&status)["members"][0]["failing"], true);
    }

    #[test]
    fn a_cluster_without_a_pair_says_so() {
        assert!(to_text(&v1::ClusterStatusResponse::default()).contains("no pair"));
    }

    #[test]
    fn json() {
        let object = to_json(&status());
        assert_eq!(object["members"][0]["load"]["kv_pages"], 4);
        assert_eq!(object["members"][1]["load"], Value::Null);
        assert_eq!(object["pairs"][0]["experts"], 0);
    }
}
