package driver

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
)

// PluginConfig configures a driver's program and its supervision.
type PluginConfig struct {
	// Program is a name, such as "acme" for the program armature-volume-acme in
	// Dir, or an absolute path. Required, except for [Registry.New], which sets it.
	Program string
	// Args are the program's arguments. Default: none.
	Args []string
	// Dir is the directory in which drivers' programs are installed. The program, each directory of its path and
	// each symbolic link in it must belong to root or to the user of this process. No other user may be able to
	// write there, except that others may add files to a sticky directory, such as /tmp.
	Dir string
	// Options are the driver's own options: a JSON object, or nil. They are sent over the
	// connection, so they are not visible in a list of processes.
	Options json.RawMessage
	// SHA256 is the checksum that the program must have, as 64 hexadecimal digits. It
	// is compared before each start with the file that is executed. Empty: the checksum is not compared.
	SHA256 string
	// Env are variables, each as KEY=value, that are added to the program's environment. Of the worker's own environment,
	// which may contain passwords, the program inherits only PATH, HOME, LANG, LC_ALL, TZ and TMPDIR.
	Env []string
	// User is the name of the user as which the program runs. It requires
	// root and Linux. Empty: the user of this process.
	User string
	// MaxFiles is the maximum number of open files of the program, and MaxMemoryMiB the maximum of its
	// private writable memory (RLIMIT_DATA), in MiB. 0: no limit. Linux only.
	MaxFiles, MaxMemoryMiB int
	// SocketDir is the directory in which a directory for the program's socket is made. Default: the
	// directory of temporary files.
	SocketDir string

	// StartTimeout is the maximum duration of a start, until the driver is open. Default 30 s.
	StartTimeout time.Duration
	// PingEvery is the time between heartbeats of a running program, and PingTimeout the
	// heartbeat timeout: a program without a heartbeat for PingTimeout hangs, and is killed and
	// restarted. Defaults 5 s and 10 s.
	PingEvery, PingTimeout time.Duration
	// CloseTimeout is the maximum duration of a Close whose context has no deadline. Default 10 s.
	CloseTimeout time.Duration
	// DrainTimeout is how long the calls on a program may take after its replacement, see [Plugin.Replace]. Default 5 min.
	DrainTimeout time.Duration
	// MinDelay and MaxDelay bound the back-off before a restart. The delay is random: at most
	// MinDelay after the first crash within CrashWindow, at most twice as long after each further
	// crash, and never more than MaxDelay. Defaults 100 ms and 30 s.
	MinDelay, MaxDelay time.Duration
	// MaxCrashes is the number of crashes that are allowed within CrashWindow. The next crash opens the
	// circuit: the state is Broken, and the program is restarted after Cooldown. Defaults 5, 1 min and 1 min.
	MaxCrashes            int
	CrashWindow, Cooldown time.Duration

	// Observe is called after each call and each stream, with the method's full
	// name in gRPC, the duration, and the error. It must be safe for concurrent use, and should not block,
	// because the call returns only after it. Nil: calls are not observed.
	Observe func(method string, took time.Duration, err error)
	// Logger gets the program's log, and a line for each start and end of the program. Default: slog.Default.
	Logger *slog.Logger
}

// setDefaults sets the fields that have no value.
func (c *PluginConfig) setDefaults() {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.StartTimeout, 30 * time.Second},
		{&c.PingEvery, 5 * time.Second},
		{&c.PingTimeout, 10 * time.Second},
		{&c.CloseTimeout, 10 * time.Second},
		{&c.DrainTimeout, 5 * time.Minute},
		{&c.MinDelay, 100 * time.Millisecond},
		{&c.MaxDelay, 30 * time.Second},
		{&c.CrashWindow, time.Minute},
		{&c.Cooldown, time.Minute},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if c.MaxCrashes <= 0 {
		c.MaxCrashes = 5
	}
	if c.SocketDir == "" {
		c.SocketDir = os.TempDir()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
}

// newPlan checks the configuration and the program of a driver of a kind.
func newPlan(kind string, cfg PluginConfig) (*plan, error) {
	cfg.setDefaults()
	if cfg.SHA256 != "" {
		if err := checkSum(cfg.SHA256); err != nil {
			return nil, optionError("plugin_sha256", quoteText(cfg.SHA256)+" "+err.Error())
		}
	}
	if cfg.User != "" {
		if _, err := user.Lookup(cfg.User); err != nil {
			return nil, optionError("plugin_user", err.Error())
		}
	}
	path, err := findProgram(kind, cfg.Program, cfg.Dir)
	if err != nil {
		return nil, err
	}
	f, err := openProgram(path, cfg.SHA256)
	if err != nil {
		return nil, err
	}
	_ = f.Close() // the file was only read
	return &plan{path: path, cfg: cfg}, nil
}

// forProgram returns an error if a field is set that has no effect on a driver in this process.
func (c *PluginConfig) forProgram() error {
	for _, o := range []struct {
		name string
		set  bool
	}{
		{"plugin_sha256", c.SHA256 != ""},
		{"plugin_user", c.User != ""},
		{"plugin_max_files", c.MaxFiles != 0},
		{"plugin_max_memory_mib", c.MaxMemoryMiB != 0},
		{"plugin_max_crashes", c.MaxCrashes != 0},
		{"plugin_start_timeout", c.StartTimeout != 0},
	} {
		if o.set {
			return optionError(o.name, "it is for a driver that is a program, but this one is built in: remove the option, or name the program by its absolute path")
		}
	}
	return nil
}

// findProgram returns the path of a program of a kind. The parameter name is a driver's name or an absolute path.
func findProgram(kind, name, dir string) (string, error) {
	prefix := "armature-" + kind + "-"
	switch {
	case filepath.IsAbs(name):
		return name, nil
	case !plainName.MatchString(name):
		return "", fault.New(fault.Invalid, "%s is neither the name of a driver (lower-case letters, digits, - and _) nor an absolute path", quoteText(name))
	case dir == "":
		return "", fault.New(fault.NotFound, "%s driver %q does not exist: plugin_dir is not set", kind, name)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, prefix+name)
	if _, err := os.Lstat(path); err == nil { // openProgram reports a symbolic link that cannot be used
		return path, nil
	}
	there, err := programNames(kind, dir)
	if err != nil {
		return "", fault.New(fault.NotFound, "%s driver %q does not exist: plugin_dir: %w", kind, name, err)
	}
	return "", fault.New(fault.NotFound, "%s driver %q does not exist: %s is missing; in that directory: %s", kind, name, path, cmp.Or(strings.Join(there, ", "), "none"))
}

// programNames returns the names of the drivers of a kind whose programs are in a directory.
func programNames(kind, dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if n, ok := strings.CutPrefix(e.Name(), "armature-"+kind+"-"); ok {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names, err
}
