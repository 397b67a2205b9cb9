package driver_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// TestNotADriver: the start of a program that is not a driver of this kind fails soon. The error has the program's path
// and the reason.
func TestNotADriver(t *testing.T) {
	t.Parallel()
	const line = `1|3|unix|/nonexistent/socket|grpc|`
	cert := strings.Repeat("A", 60)
	dir := installPrograms(t, "good", "garbage",
		"exits=echo I cannot find my library >&2; exit 7",
		"silent=exit 0",
		"talks=echo hello, I am a cat; exec sleep 1000",
		"noise=head -c 100000 /dev/zero; exec sleep 1000",
		"waits=exec sleep 1000",
		"old=echo '1|1|unix|/x|grpc|'; exec sleep 1000",
		"newer=echo '1|9|unix|/x|grpc|'; exec sleep 1000",
		"none=echo '1||unix|/x|grpc|'; exec sleep 1000",
		"netrpc=echo '1|3|unix|/x|netrpc|'; exec sleep 1000",
		"plain=echo '"+line+"'; exec sleep 1000",
		"elsewhere=echo '1|3|tcp|10.0.0.1:22|grpc|"+cert+"'; exec sleep 1000",
		"badcert=echo '"+line+cert+"'; exec sleep 1000",
		"holder=sleep 3 & echo no; exit 9", // a child holds the output open
	)
	if err := os.WriteFile(filepath.Join(dir, "armature-echo-text"), []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "armature-echo-data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "armature-echo-open")
	if err := errors.Join(os.WriteFile(open, nil, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "armature-echo-dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 80))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		program string
		cfg     driver.PluginConfig
		code    fault.Code
		says    string
	}{
		{"exits", driver.PluginConfig{}, fault.Internal, "it ended: exit status 7; its last output: I cannot find my library"},
		{"silent", driver.PluginConfig{}, fault.Internal, "it ended by itself"},
		{"talks", driver.PluginConfig{}, fault.Invalid, `it is not a driver: its output begins with "hello, I am a cat"`},
		{"garbage", driver.PluginConfig{}, fault.Unavailable, "first record does not look like a TLS handshake"},
		{"noise", driver.PluginConfig{}, fault.Invalid, `it is not a driver: its output begins with "\x00\x00`},
		{"waits", driver.PluginConfig{StartTimeout: 300 * time.Millisecond}, fault.Timeout, "it did not start in time (plugin_start_timeout is 300ms)"},
		{"old", driver.PluginConfig{}, fault.Invalid, "it has protocol 1, but this worker supports only 3 and 2: install a later program"},
		{"newer", driver.PluginConfig{}, fault.Invalid, "it has protocol 9, but this worker supports only 3 and 2: install an earlier program, or upgrade the worker"},
		{"none", driver.PluginConfig{}, fault.Invalid, `it has protocol "", but this worker supports only 3 and 2: install a later program`},
		{"netrpc", driver.PluginConfig{}, fault.Invalid, "it is not a driver"},
		{"plain", driver.PluginConfig{}, fault.Invalid, "its handshake has no certificate"},
		{"elsewhere", driver.PluginConfig{}, fault.Invalid, "it listens on tcp"},
		{"badcert", driver.PluginConfig{}, fault.Internal, "error parsing server cert"},
		{"holder", driver.PluginConfig{}, fault.Invalid, "it is not a driver: its output begins with \"no\""},
		{"text", driver.PluginConfig{}, fault.Internal, "exec format error"},
		{"data", driver.PluginConfig{}, fault.Invalid, "is not executable"},
		{"open", driver.PluginConfig{}, fault.Denied, "can be written by its group or by all users"},
		{"dir", driver.PluginConfig{}, fault.Invalid, "is not a file"},
		{"good", driver.PluginConfig{SHA256: strings.Repeat("0", 64)}, fault.Denied, "but the configuration requires 000"},
		{"good", driver.PluginConfig{SocketDir: "/proc"}, fault.Internal, "socket_dir: "},
		{"good", driver.PluginConfig{SocketDir: long}, fault.Invalid, "too long for the path of a socket"},
		{"good", driver.PluginConfig{Options: json.RawMessage(`{"color":"red"}`)}, fault.Invalid, `option color: "red" is not blue`},
		{"good", driver.PluginConfig{Options: json.RawMessage(`{"hang":true}`), StartTimeout: time.Second}, fault.Timeout, "it did not start in time (plugin_start_timeout is 1s): context deadline exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.program+" "+tt.says[:10], func(t *testing.T) {
			t.Parallel()
			cfg := tt.cfg
			cfg.Program, cfg.Dir, cfg.Logger = tt.program, dir, slog.New(slog.DiscardHandler)
			if cfg.SocketDir == "" {
				cfg.SocketDir = socketDir(t)
			}
			p, err := driver.Launch(t.Context(), echoKind, cfg)
			if p != nil || fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "armature-echo-"+tt.program) {
				t.Errorf("%v: %v\nwant %v with %q and the program's name", fault.CodeOf(err), err, tt.code, tt.says)
			}
			if left, err := os.ReadDir(cfg.SocketDir); cfg.SocketDir != "/proc" && (err != nil || len(left) > 0) {
				t.Errorf("left in the directory of sockets: %v, %v", left, err)
			}
		})
	}
}

// TestPin: the checksum is compared at each start. A program that was replaced while it ran is refused at its
// restart. That is not a crash: the circuit does not open, the log has one line, and the right file is started later.
func TestPin(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	dir := installPrograms(t, "good")
	var out logBuffer
	p := launchPlugin(t, driver.PluginConfig{
		Program: "good", Dir: dir, SHA256: strings.ToUpper(hex.EncodeToString(sum[:])), Logger: slog.New(slog.NewTextHandler(&out, nil)),
		MinDelay: time.Millisecond, MaxDelay: 20 * time.Millisecond, MaxCrashes: 2, Cooldown: time.Hour,
	})
	path := filepath.Join(dir, "armature-echo-good")
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("#!/bin/sh\necho evil"), 0o700)); err != nil {
		t.Fatal(err)
	}
	_, _ = p.Driver().Echo(t.Context(), "exit:1")
	waittest.Until(t, "the refusal", func() bool { return p.Status().State == driver.Refused })
	first := p.Status().Next
	waittest.Until(t, "ten more checks of the file", func() bool { return p.Status().Next.Sub(first) > 200*time.Millisecond })
	if st := p.Status(); st.State != driver.Refused || fault.CodeOf(st.Err) != fault.Denied {
		t.Errorf("%+v", st)
	}
	if err := p.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "is refused") || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("Check: %v", err)
	}
	if refused, crashes := out.count("driver program refused"), out.count("crashes="); refused != 1 || crashes != 1 {
		t.Errorf("%d refusals and %d crashes in the log, want 1 and 1", refused, crashes)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(self, path)); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "the restart", up(p))
}
