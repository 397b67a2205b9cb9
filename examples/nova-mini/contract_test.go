package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/armature-go/armature/internal/goldentest"
)

var (
	sampleSection = regexp.MustCompile(`^\[(.+)\]$`)
	sampleOption  = regexp.MustCompile(`^#([a-z][a-z0-9_]*) =`)
	sampleRule    = regexp.MustCompile(`^#"([^"]+)": `)
)

// TestContract: configuration files and policy files that work with a release also work with the next release. A renamed option or rule
// keeps its old name as deprecated for one release. The golden files have the names.
func TestContract(t *testing.T) { //nolint:paralleltest // goldentest reads environment variables
	var options, rules []string
	section := ""
	for line := range strings.Lines(string(printed(t, "config", "sample"))) {
		line = strings.TrimRight(line, "\n")
		if m := sampleSection.FindStringSubmatch(line); m != nil {
			section = m[1]
		} else if m := sampleOption.FindStringSubmatch(line); m != nil {
			options = append(options, section+"."+m[1])
		}
	}
	for line := range strings.Lines(string(printed(t, "policy", "sample"))) {
		if m := sampleRule.FindStringSubmatch(line); m != nil {
			rules = append(rules, m[1])
		}
	}
	const remedy = ": keep the old name as deprecated"
	goldentest.Contract(t, "the options", "testdata/options.txt", strings.Join(options, "\n")+"\n", remedy, func(old string) (broken []string, err error) {
		for line := range strings.Lines(old) {
			name := strings.TrimRight(line, "\n")
			section, option, _ := strings.Cut(name, ".")
			text := complaints(t, "["+section+"]\n"+option+" = 1\n", "config", "validate")
			if strings.Contains(text, "no such option") || strings.Contains(text, "no such section") {
				broken = append(broken, name+": no such option")
			}
		}
		return broken, nil
	})
	goldentest.Contract(t, "the rules", "testdata/rules.txt", strings.Join(rules, "\n")+"\n", remedy, func(old string) (broken []string, err error) {
		for line := range strings.Lines(old) {
			name := strings.TrimRight(line, "\n")
			file := filepath.Join(t.TempDir(), "policy.yaml")
			if err := os.WriteFile(file, []byte(`"`+name+"\": \"role:admin\"\n"), 0o600); err != nil {
				return nil, err
			}
			if text := complaints(t, "[oslo_policy]\npolicy_file = "+file+"\n", "policy", "validate"); text != "" {
				broken = append(broken, name+": "+text)
			}
		}
		return broken, nil
	})
}

// complaints runs a command with a configuration and returns the errors of the command.
func complaints(t *testing.T, conf string, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nova.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), new(bytes.Buffer), append(args, "--config-file", file)...); err != nil {
		return err.Error()
	}
	return ""
}
