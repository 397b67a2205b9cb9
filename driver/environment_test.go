package driver_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

// TestEnvironment: the program does not inherit secrets from the worker's environment.
func TestEnvironment(t *testing.T) {
	t.Setenv("DATABASE_URL", "mysql://nova:secret@db/nova")
	t.Setenv("LANG", "de_CH.UTF-8")
	p := launchPlugin(t, driver.PluginConfig{Env: []string{"ACME_HOME=/opt/acme"}, MaxFiles: 123, MaxMemoryMiB: 4096})
	env, err := p.Driver().Echo(t.Context(), "env")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"LANG=de_CH.UTF-8": true, "ACME_HOME=/opt/acme": true, "PATH=" + os.Getenv("PATH"): true, "secret": false} {
		if strings.Contains(env, name) != want {
			t.Errorf("%s in the environment: %v, want %v\n%s", name, !want, want, env)
		}
	}
	if got, err := p.Driver().Echo(t.Context(), "limit"); got != "123 files, 4096 MiB" || err != nil {
		t.Errorf("limits: %s, %v", got, err)
	}
}

// unprivileged is the user of Unix systems that has no rights.
const unprivileged = "nobody"

// TestUser: root can run a program as another user.
func TestUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		_, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: installPrograms(t, "good"), User: unprivileged})
		if err == nil || !strings.Contains(err.Error(), "option plugin_user") {
			t.Errorf("%v, want an error of the option plugin_user, which needs root", err)
		}
		return
	}
	// The binary is in a directory that only root can enter.
	dir, err := os.MkdirTemp("/var/tmp", "armature-test-") //nolint:usetesting // t.TempDir is for its owner only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), writeProgram(filepath.Join(dir, "armature-echo-good"), raw, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	for _, pin := range []string{"", hex.EncodeToString(sum[:])} {
		p := launchPlugin(t, driver.PluginConfig{Program: "good", Dir: dir, SocketDir: "/var/tmp", User: unprivileged, SHA256: pin})
		if got, err := p.Driver().Echo(t.Context(), "uid"); got == "0" || err != nil {
			t.Errorf("the program runs as user %s, %v", got, err)
		}
	}
	if _, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: dir, User: "no-such-user"}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an unknown user: %v", err)
	}
}
