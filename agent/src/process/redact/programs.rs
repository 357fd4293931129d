//! Programs whose short flags take a secret. Elsewhere `-p` is a port, a path or a prompt.

/// A program with such flags.
pub(super) struct Program {
    names: &'static [&'static str],
    /// Flags whose value is a secret, as the next argument or glued on.
    secret: &'static [&'static str],
    /// Flags whose secret can only be glued on.
    glued: &'static [&'static str],
    /// Flags whose value is `user:password`.
    login: &'static [&'static str],
}

const NONE: &[&str] = &[];

#[rustfmt::skip]
static PROGRAMS: [Program; 10] = [
    Program { names: &["mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlsh", "mariadb", "mariadb-dump", "mariadb-admin"], secret: NONE, glued: &["-p"], login: NONE },
    Program { names: &["sshpass", "mongo", "mongosh", "mongodump", "mongorestore"], secret: &["-p"], glued: NONE, login: NONE },
    Program { names: &["redis-cli", "valkey-cli"], secret: &["-a"], glued: NONE, login: NONE },
    // The subcommand of docker, podman, helm, az: `docker run -p` is a port.
    Program { names: &["login"], secret: &["-p"], glued: NONE, login: NONE },
    Program { names: &["curl"], secret: &["-b"], glued: NONE, login: &["-u", "-U", "--user", "--proxy-user"] },
    Program { names: &["http", "https", "xh"], secret: NONE, glued: NONE, login: &["-a"] },
    Program { names: &["ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldapwhoami"], secret: &["-w"], glued: NONE, login: NONE },
    Program { names: &["7z", "7za", "7zr", "7zz"], secret: NONE, glued: &["-p"], login: NONE },
    Program { names: &["zip", "unzip", "sqlcmd", "bcp"], secret: &["-P"], glued: NONE, login: NONE },
    Program { names: &["openssl"], secret: &["-k", "-K"], glued: NONE, login: NONE },
];

/// The program that an argument names, by whatever path.
pub(super) fn named(argument: &str) -> Option<&'static Program> {
    let name = argument.rsplit('/').next()?;
    PROGRAMS.iter().find(|program| program.names.contains(&name))
}

/// What an argument means for secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing.
    #[default]
    Nothing,
    /// From this byte on it is a secret; from its end on: the next argument is.
    Secret(usize),
    /// From this byte on it is `user:password`; from its end on: the next argument is.
    Login(usize),
}

impl Program {
    /// What this argument of the program means.
    pub(super) fn reads(&self, argument: &str) -> Reading {
        let with = |flags: &[&str]| flags.iter().find(|flag| value_follows(argument, flag)).map(|flag| flag.len());
        if let Some(at) = with(self.secret) {
            Reading::Secret(at)
        } else if let Some(at) = with(self.login) {
            let equals = usize::from(argument[at..].starts_with('='));
            Reading::Login(at + equals)
        } else if let Some(at) = with(self.glued).filter(|at| *at < argument.len()) {
            Reading::Secret(at)
        } else {
            Reading::Nothing
        }
    }
}

/// Whether an argument is this flag, or begins with it and goes on with its value.
fn value_follows(argument: &str, flag: &str) -> bool {
    argument.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || flag.len() == 2 || rest.starts_with('='))
}
