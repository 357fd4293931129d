//! A container with pid and mount namespaces of its own, by runc and a bundle made by hand.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::binaries::{UNDER_TEST, binary};
use crate::fixture::SOCKET;
use crate::packages::debian;
use crate::stage::Stage;

/// A bundle on a stage, and the runc that runs it.
#[derive(Debug)]
pub struct Container {
    runc: PathBuf,
    state: PathBuf,
    bundle: PathBuf,
    name: String,
}

impl Container {
    /// A container that runs this, unless containers cannot be had here: then why not.
    ///
    /// # Errors
    ///
    /// One line that says what is missing.
    pub fn new(stage: &Stage, words: &[OsString]) -> Result<Container, &'static str> {
        if !nix::unistd::geteuid().is_root() {
            return Err("it needs root");
        }
        let runc = debian("runc", "usr/sbin/runc").ok_or("it needs runc, and apt to get it")?;
        let container = Container {
            runc,
            state: stage.path("runc"),
            bundle: stage.path("bundle"),
            // A stage has one container.
            name: format!("pipewarden-test-{}", stage.folder().file_name().unwrap().to_str().unwrap()),
        };
        fs::create_dir_all(container.bundle.join("rootfs")).unwrap();
        let spec = container.runc("spec").args(["--bundle".as_ref(), container.bundle.as_os_str()]).status();
        if !spec.is_ok_and(|status| status.success()) {
            return Err("runc does not run here");
        }
        container.configure(stage, words);
        Ok(container)
    }

    /// Puts it into a cgroup, as a runtime that is told where by Kubernetes.
    ///
    /// # Panics
    ///
    /// When its bundle is gone.
    #[must_use]
    pub fn within(self, cgroup: &str) -> Container {
        self.change(|config| config["linux"]["cgroupsPath"] = json!(cgroup))
    }

    /// Gives its processes this user and group and no capability, as an unprivileged job has it.
    ///
    /// # Panics
    ///
    /// When its bundle is gone.
    #[must_use]
    pub fn unprivileged(self, uid: u32, gid: u32) -> Container {
        self.change(|config| {
            config["process"]["user"] = json!({"uid": uid, "gid": gid});
            config["process"]["noNewPrivileges"] = json!(true);
            config["process"]["capabilities"] = json!({});
        })
    }

    /// Mounts a folder of the machine at a place, read-only.
    ///
    /// # Panics
    ///
    /// When its bundle is gone.
    #[must_use]
    pub fn with_folder(self, folder: &Path, at: &str) -> Container {
        self.change(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": at, "type": "bind", "source": folder, "options": ["rbind", "ro"]}));
        })
    }

    /// Sets a variable of its environment.
    ///
    /// # Panics
    ///
    /// When its bundle is gone.
    #[must_use]
    pub fn with_variable(self, name: &str, value: &str) -> Container {
        self.change(|config| config["process"]["env"].as_array_mut().unwrap().push(json!(format!("{name}={value}"))))
    }

    fn change(self, change: impl FnOnce(&mut Value)) -> Container {
        let file = self.bundle.join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut config);
        fs::write(file, config.to_string()).unwrap();
        self
    }

    /// The machine's own programs, read-only; the stage; nothing else.
    fn configure(&self, stage: &Stage, words: &[OsString]) {
        let file = self.bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = words.iter().map(|word| word.to_str().unwrap()).collect();
        let environment = config["process"]["env"].as_array_mut().unwrap();
        environment.push(json!(format!("{SOCKET}={}", stage.socket().display())));
        config["root"]["readonly"] = json!(false);
        let mounts = config["mounts"].as_array_mut().unwrap();
        let programs = binary(UNDER_TEST).parent().unwrap().to_owned();
        let shared: [(PathBuf, &str); 6] = [
            ("/usr".into(), "ro"),
            ("/lib".into(), "ro"),
            ("/lib64".into(), "ro"),
            ("/bin".into(), "ro"),
            (programs, "ro"),
            (stage.folder().to_owned(), "rw"),
        ];
        for (folder, mode) in shared.iter().filter(|(folder, _)| folder.exists()) {
            mounts.push(json!({"destination": folder, "type": "bind", "source": folder, "options": ["rbind", mode]}));
        }
        fs::write(file, config.to_string()).unwrap();
    }

    fn runc(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.state).arg(verb).stdin(Stdio::null());
        command
    }

    /// Runs it in the foreground; its exit code is the container's.
    #[must_use]
    pub fn run(&self) -> Command {
        let mut command = self.runc("run");
        command.arg("--bundle").arg(&self.bundle).arg(&self.name);
        command
    }

    /// Sends its first process a signal.
    ///
    /// # Panics
    ///
    /// When runc cannot.
    pub fn kill(&self, signal: &str) {
        assert!(self.runc("kill").args([&self.name, signal]).status().unwrap().success());
    }

    /// Runs something in it beside its first process.
    #[must_use]
    pub fn exec(&self) -> Command {
        let mut command = self.runc("exec");
        command.arg(&self.name);
        command
    }

    /// Ends whoever is left in it, and takes it away.
    pub fn end(&self) {
        let _ = self.runc("delete").args(["--force", &self.name]).stderr(Stdio::null()).status();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.end();
    }
}
