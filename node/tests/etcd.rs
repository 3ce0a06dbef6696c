//! Membership against a real etcd: these tests need its binary (Debian: `apt install etcd-server`) and say so without it.

#[path = "../../cascadia/tests/real/address.rs"]
mod address;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use address::free_address;
use cascadia_core::ids::NodeId;
use cascadia_core::placement::{NodeRecord, NodeState, Role, ServedModel, Snapshot};
use cascadia_node::membership::{EtcdAccess, EtcdConfig, Membership, MembershipError, probe};
use etcd_client::{Certificate, ConnectOptions, Identity, Permission, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(2);

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// An etcd of one member on loopback; killed and wiped when dropped.
struct Etcd {
    /// Where clients ask, and where other members would.
    addresses: [String; 2],
    folder: PathBuf,
    child: Option<Child>,
    /// What clients show; nothing where everyone may ask.
    access: EtcdAccess,
}

/// An authority, and what it vouches for: a server on loopback and a client. Returns what the client needs.
fn certified(folder: &Path) -> EtcdAccess {
    std::fs::create_dir_all(folder).unwrap();
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(folder.join("ca.crt"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let authority = Issuer::new(authority, key);
    for name in ["server", "client"] {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        std::fs::write(folder.join(name).with_extension("crt"), params.signed_by(&key, &authority).unwrap().pem())
            .unwrap();
        std::fs::write(folder.join(name).with_extension("key"), key.serialize_pem()).unwrap();
    }
    let file = |name: &str| Some(folder.join(name));
    EtcdAccess {
        etcd_ca_file: file("ca.crt"),
        etcd_cert_file: file("client.crt"),
        etcd_key_file: file("client.key"),
        ..EtcdAccess::default()
    }
}

impl Etcd {
    /// Free addresses and an empty folder; nothing runs yet.
    fn prepared() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let addresses = [free_address(), free_address()];
        let name = format!("cascadia-etcd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        // Ids of processes come again; one that was killed has left its folder.
        let _ = std::fs::remove_dir_all(&folder);
        Self { addresses, folder, child: None, access: EtcdAccess::default() }
    }

    /// One that is asked over TLS and answers who shows a certificate.
    async fn secured() -> Self {
        let mut etcd = Self::prepared();
        etcd.access = certified(&etcd.folder.join("certificates"));
        etcd.start().await;
        etcd
    }

    fn endpoint(&self) -> String {
        let scheme = if self.access.etcd_ca_file.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addresses[0])
    }

    async fn started() -> Self {
        let mut etcd = Self::prepared();
        etcd.start().await;
        etcd
    }

    async fn start(&mut self) {
        let (client, peer) = (self.endpoint(), format!("http://{}", self.addresses[1]));
        std::fs::create_dir_all(&self.folder).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", "test", "--data-dir"])
            .arg(self.folder.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}"), "--unsafe-no-fsync"])
            // What the distribution's etcd calls a 64-bit ARM, where it wants to be told that this is meant.
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(ca) = &self.access.etcd_ca_file {
            command.args(["--client-cert-auth", "--trusted-ca-file"]).arg(ca);
            command.arg("--cert-file").arg(ca.with_file_name("server.crt"));
            command.arg("--key-file").arg(ca.with_file_name("server.key"));
        }
        let spawned = command.spawn();
        self.child = Some(spawned.unwrap_or_else(|error| {
            panic!("these tests run a real etcd and cannot start one ({error}); install it, on Debian: apt install etcd-server")
        }));
        let patience = Instant::now() + PATIENCE;
        // Nobody there is said at once; one who is there may take its time.
        while probe(&self.config(), PATIENCE).await.is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "etcd ended at once: {ended:?}");
            assert!(Instant::now() < patience, "etcd does not answer at {}", self.addresses[0]);
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn lose_data(&self) {
        std::fs::remove_dir_all(self.folder.join("data")).unwrap();
    }

    fn config(&self) -> EtcdConfig {
        let access = self.access.clone();
        EtcdConfig { endpoints: vec![self.endpoint()], lease_ttl: TTL, access, ..EtcdConfig::default() }
    }

    async fn membership(&self) -> Membership {
        Membership::etcd(self.config()).await.unwrap()
    }

    /// The revisions that made the keys of the nodes; one that was renewed has kept its own.
    async fn made(&self) -> Vec<i64> {
        let mut client = etcd_client::Client::connect([self.endpoint()], None).await.unwrap();
        let all = etcd_client::GetOptions::new().with_prefix();
        let answer = client.get("/cascadia/nodes/", Some(all)).await.unwrap();
        answer.kvs().iter().map(etcd_client::KeyValue::create_revision).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn record(id: &str) -> NodeRecord {
    let model = ServedModel {
        name: "demo".into(),
        fingerprint: "e0".into(),
        tokenizer_fingerprint: "t0".into(),
        row_exact: true,
    };
    NodeRecord {
        id: NodeId(id.into()),
        instance: u64::MAX,
        role: Role::Expert,
        address: "127.0.0.1:1".into(),
        admin_address: "127.0.0.1:2".into(),
        models: vec![model],
        capacity: 4,
        protocol: (1, 1),
        state: NodeState::Ready,
    }
}

type Snapshots = watch::Receiver<Arc<Snapshot>>;

fn names(snapshots: &Snapshots) -> BTreeSet<String> {
    snapshots.borrow().nodes.keys().map(|id| id.0.clone()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

async fn sees(snapshots: &mut Snapshots, wanted: &[&str]) {
    let wanted = set(wanted);
    let seen = timeout(PATIENCE, async {
        while names(snapshots) != wanted {
            snapshots.changed().await.unwrap();
        }
    });
    assert!(seen.await.is_ok(), "{wanted:?} not seen, but {:?}", names(snapshots));
}

#[tokio::test]
async fn nodes_come_change_and_go() {
    let etcd = Etcd::started().await;
    let (ours, theirs) = (etcd.membership().await, etcd.membership().await);
    let mut snapshots = theirs.snapshots();
    // A lease that outlasts the test.
    let lasting = Membership::etcd(EtcdConfig { lease_ttl: 10 * PATIENCE, ..etcd.config() }).await.unwrap();
    let a = lasting.register(record("a")).await.unwrap();
    let b = ours.register(record("b")).await.unwrap();
    sees(&mut snapshots, &["a", "b"]).await;
    assert_eq!(snapshots.borrow().nodes[&NodeId("a".into())], record("a"));

    let revision = snapshots.borrow().revision;
    let draining = NodeRecord { state: NodeState::Draining, ..record("a") };
    a.update(draining.clone()).await;
    snapshots.wait_for(|snapshot| snapshot.nodes[&draining.id] == draining).await.unwrap();
    assert!(snapshots.borrow().revision > revision);
    // Long past the lease: it is renewed. A machine that stood still for the life of a lease gets another chance.
    let renewed = async {
        loop {
            let made = etcd.made().await;
            sleep(TTL * 2).await;
            if made.len() == 2 && etcd.made().await == made {
                return;
            }
        }
    };
    timeout(PATIENCE, renewed).await.expect("a lease is renewed");
    sees(&mut snapshots, &["a", "b"]).await;

    a.withdraw().await;
    sees(&mut snapshots, &["b"]).await;
    // A membership that starts later lists what it has not watched.
    sees(&mut etcd.membership().await.snapshots(), &["b"]).await;
    drop(b);
}

#[tokio::test]
async fn a_crashed_nodes_lease_ends_and_a_restart_outlives_it() {
    let etcd = Etcd::started().await;
    let membership = etcd.membership().await;
    let mut snapshots = membership.snapshots();
    let a = membership.register(record("a")).await.unwrap();
    let _b = membership.register(record("b")).await.unwrap();
    let c = membership.register(record("c")).await.unwrap();
    sees(&mut snapshots, &["a", "b", "c"]).await;
    let since = Instant::now();
    drop((a, c));
    let again = NodeRecord { instance: 2, ..record("c") };
    let _c = membership.register(again.clone()).await.unwrap();
    sees(&mut snapshots, &["b", "c"]).await;
    assert!(since.elapsed() > TTL / 4, "a crash is no withdrawal: {:?}", since.elapsed());
    assert_eq!(snapshots.borrow().nodes[&again.id], again);
}

#[tokio::test]
async fn when_etcd_loses_its_data_nobody_vanishes_and_all_register_again() {
    let mut etcd = Etcd::started().await;
    let membership = etcd.membership().await;
    let mut snapshots = membership.snapshots();
    let mut registrations = Vec::new();
    for id in ["a", "b", "c"] {
        registrations.push(membership.register(record(id)).await.unwrap());
    }
    sees(&mut snapshots, &["a", "b", "c"]).await;
    let mut watched = snapshots.clone();
    let least = Arc::new(AtomicUsize::new(usize::MAX));
    let seen = least.clone();
    tokio::spawn(async move {
        while watched.changed().await.is_ok() {
            seen.fetch_min(watched.borrow_and_update().nodes.len(), Ordering::Relaxed);
        }
    });

    etcd.kill();
    etcd.lose_data();
    sleep(TTL * 2).await;
    assert_eq!(names(&snapshots), set(&["a", "b", "c"]), "etcd is away, the nodes are not");
    etcd.start().await;
    let fresh = etcd.membership().await;
    sees(&mut fresh.snapshots(), &["a", "b", "c"]).await;
    assert!(least.load(Ordering::Relaxed) >= 3, "a snapshot had lost nodes");
    // Past every grace, so that what stays is what is registered.
    sleep(TTL * 3).await;
    sees(&mut snapshots, &["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_node_that_starts_while_etcd_is_away_waits() {
    let mut etcd = Etcd::prepared();
    let refused = probe(&etcd.config(), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, MembershipError::Unreachable { .. }), "{refused}");
    assert!(refused.to_string().contains("refused"), "{refused}");
    let membership = etcd.membership().await;
    let mut snapshots = membership.snapshots();
    let registering = {
        let membership = membership.clone();
        tokio::spawn(async move { membership.register(record("a")).await })
    };
    sleep(Duration::from_millis(700)).await;
    assert!(!registering.is_finished() && snapshots.borrow().nodes.is_empty());
    etcd.start().await;
    let _a = timeout(PATIENCE, registering).await.unwrap().unwrap().unwrap();
    sees(&mut snapshots, &["a"]).await;
}

#[tokio::test]
async fn two_clusters_under_one_prefix_do_not_see_each_other() {
    let etcd = Etcd::started().await;
    let of = async |name: &str| {
        Membership::etcd(EtcdConfig { cluster: name.parse().unwrap(), ..etcd.config() }).await.unwrap()
    };
    let (blue, green) = (of("blue").await, of("green").await);
    let _a = blue.register(record("a")).await.unwrap();
    let _b = green.register(record("b")).await.unwrap();
    // As a release before there were names writes it.
    let old =
        r#"{"instance":1,"role":"expert","address":"h:1","models":[],"capacity":2,"protocol":[1,1],"state":"ready"}"#;
    let mut client = etcd_client::Client::connect(etcd.config().endpoints, None).await.unwrap();
    client.put("/cascadia/nodes/old", old, None).await.unwrap();
    sees(&mut blue.snapshots(), &["a", "old"]).await;
    sees(&mut green.snapshots(), &["b", "old"]).await;
    // A list leaves the others out as the watch does.
    sees(&mut of("blue").await.snapshots(), &["a", "old"]).await;
    // A node of the same name takes the key: it is ours no more.
    let again = green.register(NodeRecord { instance: 2, ..record("a") }).await.unwrap();
    sees(&mut green.snapshots(), &["a", "b", "old"]).await;
    sees(&mut blue.snapshots(), &["old"]).await;
    again.withdraw().await;
}

#[tokio::test]
async fn keys_that_are_no_records_are_passed_over() {
    let etcd = Etcd::started().await;
    let membership = etcd.membership().await;
    let mut client = etcd_client::Client::connect(etcd.config().endpoints, None).await.unwrap();
    client.put("/cascadia/nodes/junk", "{", None).await.unwrap();
    client.put("/cascadia/other", "{}", None).await.unwrap();
    let _a = membership.register(record("a")).await.unwrap();
    sees(&mut membership.snapshots(), &["a"]).await;
    // A list has to pass over them as well.
    sees(&mut etcd.membership().await.snapshots(), &["a"]).await;
}

#[tokio::test]
async fn when_all_leases_lapse_half_of_the_nodes_stay_until_the_grace_ends() {
    let etcd = Etcd::started().await;
    let membership = etcd.membership().await;
    let mut snapshots = membership.snapshots();
    let mut registrations = Vec::new();
    for id in ["a", "b", "c", "d"] {
        registrations.push(membership.register(record(id)).await.unwrap());
    }
    sees(&mut snapshots, &["a", "b", "c", "d"]).await;
    drop(registrations);
    // Every lease has ended and is heard of by then, and the grace of the last has not.
    while !etcd.made().await.is_empty() {
        sleep(Duration::from_millis(50)).await;
    }
    sleep(TTL / 4).await;
    assert!(snapshots.borrow().nodes.len() >= 2, "{:?}", names(&snapshots));
    sees(&mut snapshots, &[]).await;
}

/// Asks for names and passwords from now on: one user, who may do everything under the nodes' prefix and nothing else.
async fn ask_for_passwords(etcd: &Etcd) {
    let file = |path: &Option<PathBuf>| std::fs::read(path.as_ref().unwrap()).unwrap();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(file(&etcd.access.etcd_ca_file)))
        .identity(Identity::from_pem(file(&etcd.access.etcd_cert_file), file(&etcd.access.etcd_key_file)));
    let options = ConnectOptions::new().with_tls(tls);
    let mut client = etcd_client::Client::connect([etcd.endpoint()], Some(options)).await.unwrap();
    client.role_add("nodes").await.unwrap();
    let theirs = Permission::read_write("/cascadia/nodes/").with_prefix();
    client.role_grant_permission("nodes", theirs).await.unwrap();
    for (user, password, role) in [("root", "unguessable", "root"), ("cascadia", "a password", "nodes")] {
        client.user_add(user, password, None).await.unwrap();
        client.user_grant_role(user, role).await.unwrap();
    }
    client.auth_enable().await.unwrap();
}

#[tokio::test]
async fn an_etcd_that_asks_for_certificates_and_passwords_is_shown_them() {
    let mut etcd = Etcd::secured().await;
    let refused = async |access: EtcdAccess| {
        let config = EtcdConfig { access, ..etcd.config() };
        probe(&config, PATIENCE).await.unwrap_err().to_string()
    };
    let stranger = certified(&etcd.folder.join("strangers"));
    refused(EtcdAccess { etcd_cert_file: None, etcd_key_file: None, ..etcd.access.clone() }).await;
    let unknown = refused(EtcdAccess { etcd_ca_file: stranger.etcd_ca_file.clone(), ..etcd.access.clone() }).await;
    assert!(unknown.contains("certificate"), "{unknown}");
    refused(EtcdAccess {
        etcd_cert_file: stranger.etcd_cert_file,
        etcd_key_file: stranger.etcd_key_file,
        ..etcd.access.clone()
    })
    .await;

    ask_for_passwords(&etcd).await;
    let file = etcd.folder.join("password");
    std::fs::write(&file, "another\n").unwrap();
    let access = EtcdAccess {
        etcd_user: Some("cascadia".into()),
        etcd_password_file: Some(file.clone()),
        ..etcd.access.clone()
    };
    let nameless = refused(etcd.access.clone()).await;
    assert!(nameless.contains("permission denied"), "{nameless}");
    let mistaken = refused(access.clone()).await;
    assert!(mistaken.contains("authentication failed"), "{mistaken}");
    std::fs::write(&file, "a password\n").unwrap();
    etcd.access = access;

    let membership = etcd.membership().await;
    let mut snapshots = membership.snapshots();
    let _a = membership.register(record("a")).await.unwrap();
    sees(&mut snapshots, &["a"]).await;
    // A member that starts again knows nothing of the names it was told: they are told again.
    etcd.kill();
    etcd.start().await;
    sleep(TTL * 3).await;
    sees(&mut etcd.membership().await.snapshots(), &["a"]).await;
    let b = membership.register(record("b")).await.unwrap();
    sees(&mut snapshots, &["a", "b"]).await;
    b.withdraw().await;
    sees(&mut snapshots, &["a"]).await;
}
