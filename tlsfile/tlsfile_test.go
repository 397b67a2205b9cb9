package tlsfile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/certtest"
	"github.com/armature-go/armature/tlsfile"
)

// TestClient: Config reads good files. If a file does not exist, has no certificate or key, or is set
// without the other file of the pair, the error names the file.
func TestClient(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t)
	cert, key := ca.Issue(t, "client")
	_, other := ca.Issue(t, "other")
	missing, empty := filepath.Join(t.TempDir(), "missing.pem"), filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		files tlsfile.Client
		want  string // what the error contains; empty: no error
	}{
		{"no files", tlsfile.Client{}, ""},
		{"all files", tlsfile.Client{CAFile: ca.File, CertFile: cert, KeyFile: key, ServerName: "x"}, ""},
		{"authorities do not exist", tlsfile.Client{CAFile: missing}, missing},
		{"authorities without a certificate", tlsfile.Client{CAFile: empty}, empty},
		{"key not set", tlsfile.Client{CertFile: cert}, cert},
		{"certificate not set", tlsfile.Client{KeyFile: key}, key},
		{"key does not exist", tlsfile.Client{CertFile: cert, KeyFile: missing}, missing},
		{"certificate does not exist", tlsfile.Client{CertFile: missing, KeyFile: key}, missing},
		{"key of another certificate", tlsfile.Client{CertFile: cert, KeyFile: other}, other},
		{"file without a key", tlsfile.Client{CertFile: cert, KeyFile: empty}, empty},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, err := tt.files.Config()
			switch {
			case tt.want == "" && (err != nil || cfg.InsecureSkipVerify):
				t.Errorf("Config: %v, %v; want verification and no error", cfg, err)
			case tt.want != "" && (fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("Config: %v, want Invalid with %s", err, tt.want)
			}
		})
	}
}

// TestKeyMode: Config rejects a private key that other users can read, by PostgreSQL's rule.
func TestKeyMode(t *testing.T) {
	t.Parallel()
	root := os.Geteuid() == 0
	for _, tt := range []struct {
		mode  os.FileMode
		owner int // -1: the process's user
		ok    bool
	}{
		{0o600, -1, true},
		{0o400, -1, true},
		{0o644, -1, false},
		{0o604, -1, false},
		{0o660, -1, false},
		{0o640, 0, true},
		{0o440, 0, true},
		{0o644, 0, false},
		{0o600, 65534, false},
	} {
		if tt.owner >= 0 && !root || tt.owner < 0 && root && tt.mode&0o070 != 0 && tt.ok {
			continue // only root can change a file's owner
		}
		cert, key := certtest.New(t).Issue(t, "client")
		if tt.owner >= 0 {
			if err := os.Chown(key, tt.owner, -1); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(key, tt.mode); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(t.TempDir(), "link.key")
		if err := os.Symlink(key, link); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{key, link} {
			_, err := tlsfile.Client{CertFile: cert, KeyFile: file}.Config()
			if tt.ok && err != nil || !tt.ok && (fault.CodeOf(err) != fault.Denied || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "key")) {
				t.Errorf("mode %04o, owner %d: error %v, want success: %v", tt.mode, tt.owner, err, tt.ok)
			}
		}
	}
}
