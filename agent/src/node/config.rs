//! `node.toml`: what it may say, and what it means. Every key is optional.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::{Glob, GlobMatcher};
use nix::unistd::Group;

use crate::audit::Target;
use crate::config::{ConfigError, Source, Table, Value};
use crate::kernel::object::Sizes;
use crate::kernel::room;
use crate::ownership::keep::Keep;
use crate::value;

type Read<T> = Result<T, ConfigError>;

/// A configuration that is sound in itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where supervisors ask.
    pub socket: Socket,
    /// Where metrics are.
    pub http: Http,
    /// Where audit records go.
    pub audit: Audit,
    /// How much room the tracker's maps have.
    pub map: Sizes,
    /// Who tells names.
    pub names: Names,
    /// What is done about withheld pipes: the first policy that matches a holder decides about it.
    pub policies: Vec<Policy>,
}

/// `[socket]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its path.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// The number of its group, where it is not ours.
    pub group: Option<u32>,
}

/// `[http]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where it listens; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// The file with the token that a request must show. Always there where strangers can connect.
    pub token_file: Option<PathBuf>,
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Where to.
    pub target: Target,
    /// A file that would grow beyond this many bytes is put aside first; 0: never.
    pub max_size: u64,
    /// How many files that were put aside are kept.
    pub files: u32,
}

/// `[names]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The socket of a container runtime (CRI); none: nobody is asked.
    pub cri: Option<PathBuf>,
}

/// `[[policy]]`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Which holders it is about.
    pub about: Match,
    /// What is done.
    pub on_withheld: OnWithheld,
    /// How long a pipe must have been withheld before a holder is ended.
    pub grace: Duration,
    /// Who is never ended.
    pub keep: Kept,
    /// How many acts in how long a time; none: any number.
    pub limit: Rate,
    /// The same for each pod (or container outside of pods).
    pub pod_limit: Rate,
}

/// `keep`: globs over a process's name, its program or its command line.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// To ask about a process that lives.
    pub live: Keep,
    globs: Vec<Pattern>,
}

impl Kept {
    /// Whether one of these texts, which are what is known of a process, matches.
    #[must_use]
    pub fn matches(&self, texts: &[&str]) -> bool {
        self.globs.iter().any(|glob| texts.iter().any(|text| glob.matches(text)))
    }
}

/// How many in how long a time; none: any number.
pub type Rate = Option<(usize, Duration)>;

/// What a policy does about a withheld pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnWithheld {
    /// Says so.
    Observe,
    /// Ends its holders.
    End,
}

/// Which holders a policy is about: those for which every key that is there matches. What is not known of
/// a holder matches nothing, so a policy never reaches whom it might not be about.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// The pod's namespace.
    pub namespace: Option<Pattern>,
    /// The pod's name, or its uid.
    pub pod: Option<Pattern>,
    /// Labels of the pod, by their names.
    pub labels: Vec<(String, Pattern)>,
    /// The container's name, or its id.
    pub container: Option<Pattern>,
    /// The container's image.
    pub image: Option<Pattern>,
    /// The cgroup's path.
    pub cgroup: Option<Pattern>,
    /// The real user.
    pub uid: Option<u32>,
    /// The program's name.
    pub comm: Option<Pattern>,
}

/// A glob; `*` also crosses slashes.
#[derive(Clone, Debug)]
pub struct Pattern(GlobMatcher);

impl Pattern {
    /// Compiles a glob.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn new(glob: &str) -> Result<Pattern, String> {
        let glob = Glob::new(glob).map_err(|error| format!("{}; use a glob such as \"ci-*\"", error.kind()))?;
        Ok(Pattern(glob.compile_matcher()))
    }

    /// Whether it matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// Where the configuration is, unless `--config` says otherwise.
pub const PATH: &str = "/etc/pipewarden/node.toml";
const DOCUMENT: &str = "docs/node.md";
const MIB: u64 = 1 << 20;
/// Less would put a file aside with every few records.
const SMALLEST: u64 = 64 << 10;

impl Default for Config {
    fn default() -> Config {
        Config {
            socket: Socket { path: "/run/pipewarden/node.sock".into(), mode: 0o660, group: None },
            http: Http { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9477))), token_file: None },
            audit: Audit {
                target: Target::Path("/var/log/pipewarden/audit.jsonl".into()),
                max_size: 64 * MIB,
                files: 8,
            },
            map: Sizes::NODE,
            names: Names::default(),
            policies: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn load(path: &Path) -> Read<Config> {
        Source::load(path, DOCUMENT)?.read(read)
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    ///
    /// As for [`load`](Config::load).
    pub fn parse(name: String, text: String) -> Read<Config> {
        Source::new(name, text).read(read)
    }
}

impl Match {
    /// Whether there is no key: then everybody matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Match { namespace, pod, labels, container, image, cgroup, uid, comm } = self;
        let globs = [namespace, pod, container, image, cgroup, comm];
        labels.is_empty() && uid.is_none() && globs.iter().all(|glob| glob.is_none())
    }

    /// The keys of what only a container runtime tells.
    #[must_use]
    pub fn told_by_others(&self) -> Vec<&'static str> {
        let keys = [
            ("namespace", self.namespace.is_some()),
            ("labels", !self.labels.is_empty()),
            ("image", self.image.is_some()),
        ];
        keys.iter().filter(|(_, there)| *there).map(|(key, _)| *key).collect()
    }
}

fn read(mut table: Table<'_>) -> Read<Config> {
    let mut config = Config::default();
    if let Some(own) = table.take("socket") {
        socket(own.table("[socket]")?, &mut config.socket)?;
    }
    if let Some(own) = table.take("http") {
        http(own.table("[http]")?, &mut config.http)?;
    }
    if let Some(own) = table.take("audit") {
        audit(own.table("[audit]")?, &mut config.audit)?;
    }
    if let Some(own) = table.take("map") {
        map(own.table("[map]")?, &mut config.map)?;
    }
    if let Some(own) = table.take("names") {
        names(own.table("[names]")?, &mut config.names)?;
    }
    if let Some(policies) = table.take("policy") {
        for (index, own) in policies.tables("[[policy]] with keys below it")?.into_iter().enumerate() {
            let policy = policy(own, index, &config.policies)?;
            config.policies.push(policy);
        }
    }
    table.done()?;
    Ok(config)
}

fn socket(mut table: Table<'_>, socket: &mut Socket) -> Read<()> {
    if let Some(path) = path(&mut table, "path")? {
        socket.path = path;
    }
    if let Some(mode) = table.take("mode") {
        socket.mode = octal(&mode)?;
    }
    socket.group = table.take("group").map(|group| group.parsed(self::group)).transpose()?;
    table.done()
}

/// TOML's own octal numbers begin with 0o; what people write is a text.
fn octal(value: &Value<'_>) -> Read<u32> {
    const RIGHT: &str = "use permissions in octal in quotes, such as \"0660\"";
    let Some(text) = value.as_text() else { return Err(value.wrong(RIGHT)) };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(value.wrong(&format!("\"{}\": {RIGHT}", text.escape_debug()))),
    }
}

fn group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err("there is no such group; use a name of /etc/group or a number".to_owned()),
    }
}

fn http(mut table: Table<'_>, http: &mut Http) -> Read<()> {
    let listen = table.take("listen");
    if let Some(listen) = &listen {
        http.listen = listen.parsed(address)?;
    }
    http.token_file = path(&mut table, "token_file")?;
    if let (Some(value), Some(address)) = (&listen, http.listen)
        && !address.ip().is_loopback()
        && http.token_file.is_none()
    {
        return Err(value.wrong("others can connect here; name a token_file too, or listen on 127.0.0.1"));
    }
    table.done()
}

fn address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "use ADDRESS:PORT, such as \"127.0.0.1:9477\", or \"off\"".to_owned())
}

fn audit(mut table: Table<'_>, audit: &mut Audit) -> Read<()> {
    if let Some(target) = table.take("path") {
        audit.target = match target.text()? {
            "" => return Err(target.wrong("the path is empty; name a file, or \"-\" for stderr")),
            text => std::ffi::OsString::from(text).into(),
        };
    }
    if let Some(value) = table.take("max_size") {
        audit.max_size = value.parsed(|text| if text == "off" { Ok(0) } else { value::size(text) })?;
        if (1..SMALLEST).contains(&audit.max_size) {
            return Err(value.wrong("this is a few records; use at least 64KiB, or \"off\""));
        }
    }
    if let Some(value) = table.take("files") {
        audit.files = number(&value, 1..=999)?;
    }
    table.done()
}

fn map(mut table: Table<'_>, sizes: &mut Sizes) -> Read<()> {
    if let Some(value) = table.take("processes") {
        sizes.processes = number(&value, 1024..=room::MOST)?;
    }
    if let Some(value) = table.take("descriptors") {
        sizes.slots = number(&value, 1024..=room::MOST)?;
        sizes.holders = sizes.holders.min(sizes.slots).max(sizes.slots / 8);
    }
    if let Some(value) = table.take("event_bytes") {
        sizes.event_bytes = value.parsed(|text| {
            let fits = |bytes: &u32| bytes.is_power_of_two() && (4096..=64 << 20).contains(bytes);
            let bytes = value::size(text)?;
            u32::try_from(bytes)
                .ok()
                .filter(fits)
                .ok_or_else(|| "use a power of two from \"4KiB\" to \"64MiB\"".to_owned())
        })?;
    }
    table.done()
}

fn names(mut table: Table<'_>, names: &mut Names) -> Read<()> {
    if let Some(value) = table.take("cri") {
        names.cri = match value.text()? {
            "off" => None,
            text if text.starts_with('/') => Some(text.into()),
            _ => {
                return Err(
                    value.wrong("use the path of a socket, such as \"/run/containerd/containerd.sock\", or \"off\"")
                );
            }
        };
    }
    table.done()
}

fn number(value: &Value<'_>, range: std::ops::RangeInclusive<u32>) -> Read<u32> {
    let right = || format!("use a number from {} to {}", range.start(), range.end());
    value.parsed(|text| text.parse().ok().filter(|number| range.contains(number)).ok_or_else(right))
}

fn path(table: &mut Table<'_>, key: &'static str) -> Read<Option<PathBuf>> {
    let Some(value) = table.take(key) else { return Ok(None) };
    match value.text()? {
        text if text.starts_with('/') => Ok(Some(text.into())),
        _ => Err(value.wrong("use a path that begins with /")),
    }
}

fn policy(mut table: Table<'_>, index: usize, others: &[Policy]) -> Read<Policy> {
    let name_value = table.take("name");
    let name = match &name_value {
        None => format!("policy {}", index + 1),
        Some(value) => match value.text()? {
            "" => return Err(value.wrong("the name is empty; audit records say it")),
            text => text.to_owned(),
        },
    };
    if others.iter().any(|other| other.name == name) {
        let text =
            format!("there is another policy \"{}\"; audit records could not tell them apart", name.escape_debug());
        return Err(name_value.map_or_else(|| table.wrong(&text), |value| value.wrong(&text)));
    }
    let about = table.take("match").map_or(Ok(Match::default()), |value| matches(&value))?;
    let words = [("observe", OnWithheld::Observe), ("end", OnWithheld::End)];
    let on_withheld_value = table.take("on_withheld");
    let on_withheld = on_withheld_value.as_ref().map_or(Ok(OnWithheld::Observe), |value| value.one_of(&words))?;
    if let Some(value) = on_withheld_value.filter(|_| on_withheld == OnWithheld::End && about.is_empty()) {
        let text = "\"end\" needs a match; for every process of the machine write match = { cgroup = \"*\" }";
        return Err(value.wrong(text));
    }
    let policy = Policy {
        name,
        about,
        on_withheld,
        grace: table.take("grace").map_or(Ok(Duration::from_secs(5)), |value| value.duration())?,
        keep: table.take("keep").map_or(Ok(Kept::default()), |value| keep(&value))?,
        limit: rate(&mut table, "limit", 10)?,
        pod_limit: rate(&mut table, "pod_limit", 3)?,
    };
    table.done()?;
    Ok(policy)
}

fn rate(table: &mut Table<'_>, key: &'static str, acts: usize) -> Read<Rate> {
    table.take(key).map_or(Ok(Some((acts, Duration::from_secs(60)))), |value| value.parsed(value::rate))
}

fn keep(value: &Value<'_>) -> Read<Kept> {
    let texts = value.texts()?;
    let pattern = |text: &String| {
        Pattern::new(text).map_err(|right| value.wrong(&format!("\"{}\": {right}", text.escape_debug())))
    };
    let globs = texts.iter().map(pattern).collect::<Read<_>>()?;
    let live = Keep::new(&texts).map_err(|error| value.wrong(&error.to_string()))?;
    Ok(Kept { live, globs })
}

fn matches(value: &Value<'_>) -> Read<Match> {
    let mut table = value.table("{ container = \"claude\" }")?;
    let mut glob = |key| table.take(key).map(|value| pattern(&value)).transpose();
    let about = Match {
        namespace: glob("namespace")?,
        pod: glob("pod")?,
        container: glob("container")?,
        image: glob("image")?,
        cgroup: glob("cgroup")?,
        comm: glob("comm")?,
        labels: table.take("labels").map_or(Ok(Vec::new()), |value| labels(&value))?,
        uid: table.take("uid").map(|value| number(&value, 0..=u32::MAX - 1)).transpose()?,
    };
    table.done()?;
    Ok(about)
}

fn labels(value: &Value<'_>) -> Read<Vec<(String, Pattern)>> {
    let entries = value.table("{ NAME = \"GLOB\" }")?.into_entries();
    entries.iter().map(|entry| Ok((entry.name().to_owned(), pattern(entry)?))).collect()
}

fn pattern(value: &Value<'_>) -> Read<Pattern> {
    let text = value.text()?;
    Pattern::new(text).map_err(|right| value.wrong(&format!("\"{}\": {right}", text.escape_debug())))
}

#[cfg(test)]
mod tests;
