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

// TestClient: files that are missing, are something else, or of which one is missing, are errors that
// name the file.
func TestClient(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t)
	cert, key := ca.Issue(t, "client")
	_, other := ca.Issue(t, "other")
	gone, empty := filepath.Join(t.TempDir(), "gone.pem"), filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		files tlsfile.Client
		says  string // empty: it is content
	}{
		{"nothing", tlsfile.Client{}, ""},
		{"all", tlsfile.Client{CAFile: ca.File, CertFile: cert, KeyFile: key, ServerName: "x"}, ""},
		{"no authorities", tlsfile.Client{CAFile: gone}, gone},
		{"authorities that are none", tlsfile.Client{CAFile: empty}, empty},
		{"no key", tlsfile.Client{CertFile: cert}, cert},
		{"no certificate", tlsfile.Client{KeyFile: key}, key},
		{"missing key", tlsfile.Client{CertFile: cert, KeyFile: gone}, gone},
		{"missing certificate", tlsfile.Client{CertFile: gone, KeyFile: key}, gone},
		{"another's key", tlsfile.Client{CertFile: cert, KeyFile: other}, other},
		{"a key that is none", tlsfile.Client{CertFile: cert, KeyFile: empty}, empty},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, err := tt.files.Config()
			switch {
			case tt.says == "" && (err != nil || cfg.InsecureSkipVerify):
				t.Errorf("%v, %v", cfg, err)
			case tt.says != "" && (fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("%v, want Invalid with %s", err, tt.says)
			}
		})
	}
}

// TestKeyOfOthers: a private key that others can read is refused, as PostgreSQL refuses it.
func TestKeyOfOthers(t *testing.T) {
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
			continue // only root can give files away
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
				t.Errorf("mode %04o of user %d: %v, want that it is taken: %v", tt.mode, tt.owner, err, tt.ok)
			}
		}
	}
}
