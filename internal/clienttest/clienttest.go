// Package clienttest runs the commands that a document shows to users of OpenStack.
package clienttest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Client is a program such as openstack, with its environment.
type Client struct {
	Program string
	Env     []string
	// Before is called before each command of a document, for example to wait until no resource changes.
	Before func()
	// Values replace words of a document, such as IMAGE.
	Values map[string]string
	// JSON, if not nil, makes Document run each command that prints a result with -f json, and gets the command and the result. The commands without a result in the form of JSON are in Plain,
	// each with the reason.
	JSON  func(command string, result any)
	Plain map[string]string
}

// New returns a client. If the program is not installed, New skips the test, or fails it in CI. The parameter debian is
// the name of the Debian package that has the program.
func New(t *testing.T, program, debian string, env ...string) *Client {
	t.Helper()
	path, err := exec.LookPath(program)
	switch {
	case err != nil && os.Getenv("CI") != "":
		t.Fatalf("the package %s is not installed; the test environment installs it", debian)
	case err != nil:
		t.Skipf("the package %s is not installed", debian)
	}
	return &Client{Program: path, Env: append(os.Environ(), append(env, "HOME="+t.TempDir())...), Before: func() {}}
}

// Run runs a command and returns its output. If the command fails, the test fails.
func (c *Client) Run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), c.Program, args...)
	cmd.Env = c.Env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", c.Program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// runJSON runs a command with -f json and returns its result. The standard error is not a part of the result.
func (c *Client) runJSON(t *testing.T, args ...string) (result any) {
	t.Helper()
	if !slices.Contains(args, "-f") {
		args = append(args, "-f", "json")
	}
	var errs strings.Builder
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), c.Program, args...)
	cmd.Env, cmd.Stderr = c.Env, &errs
	out, err := cmd.Output()
	if err == nil { // with --wait, a command may print a word such as Complete before the result
		err = json.Unmarshal(out[max(bytes.IndexAny(out, "{["), 0):], &result)
	}
	if err != nil {
		t.Fatalf("%s %s: %v: %s%s", c.Program, strings.Join(args, " "), err, out, errs.String())
	}
	return result
}

// printing matches the commands that print a result.
var printing = regexp.MustCompile(`(^| )(list|show|create|rebuild)( |$)`)

// PublicKey writes a public key for SSH into a file, and returns the path of the file.
func PublicKey(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	const kind = "ssh-ed25519"
	blob := append(binary.BigEndian.AppendUint32(nil, uint32(len(kind))), kind...)
	blob = append(binary.BigEndian.AppendUint32(blob, uint32(len(public))), public...)
	path := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(path, []byte(kind+" "+base64.StdEncoding.EncodeToString(blob)+" mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// inner matches a command within a command.
var inner = regexp.MustCompile(`\$\(\w+ (.*?)\)`)

// Document runs the commands in a document's first code block with the language. Each line is one command. The keys of
// wants are commands, without the name of the program. The output of such a command must contain the value. A key of
// wants that is not in the document is an error.
func (c *Client) Document(t *testing.T, document, language string, wants map[string]string) {
	t.Helper()
	raw, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(string(raw))
	if block == nil {
		t.Fatalf("%s has no commands of %s", document, language)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(block[1]) {
		_, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		c.Before()
		text := inner.ReplaceAllStringFunc(command, func(text string) string {
			return strings.TrimSpace(c.Run(t, strings.Fields(inner.FindStringSubmatch(text)[1])...))
		})
		args := strings.Fields(text)
		for i, arg := range args {
			args[i] = cmp.Or(c.Values[arg], arg)
		}
		seen[command] = true
		if c.JSON != nil && printing.MatchString(command) && c.Plain[command] == "" {
			c.JSON(command, c.runJSON(t, args...))
			continue
		}
		out := c.Run(t, args...)
		if want := wants[command]; !strings.Contains(out, want) {
			t.Errorf("%s printed %s, want %s", line, out, want)
		}
	}
	if c.JSON != nil {
		for command := range c.Plain {
			if !seen[command] {
				t.Errorf("%s lacks the command %s", document, command)
			}
		}
	}
	for command := range wants {
		if !seen[command] {
			t.Errorf("%s lacks the command %s", document, command)
		}
	}
}
