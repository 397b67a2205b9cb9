package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPrintedImage: the commands that the program prints name an image that exists, or say that the user has to choose one.
func TestPrintedImage(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "nova.conf")
	if err := os.WriteFile(conf, []byte("[image]\ndirectory = "+dir+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		file string
		args []string
		want string
	}{
		{"", nil, "cirros"},
		{"", []string{"--config-file", conf}, "IMAGE"},
		{"a b.raw", []string{"--config-file", conf}, "IMAGE"},
		{"debian-12.raw", []string{"--config-file", conf}, "debian-12"},
	} {
		t.Run(tt.want+tt.file, func(t *testing.T) { //nolint:paralleltest // the program sets the default logger
			if tt.file != "" {
				if err := os.WriteFile(filepath.Join(dir, tt.file), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			text := printAll(t, tt.args...)
			note := "IMAGE stands for the name of an image in " + dir
			if !strings.Contains(text, `"imageRef": "`+tt.want+`"`) || !strings.Contains(text, "openstack server create --image "+tt.want+" ") || strings.Contains(text, note) != (tt.want == "IMAGE") {
				t.Errorf("printed:\n%s", text)
			}
		})
	}
}
