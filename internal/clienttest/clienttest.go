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
	// After, if not nil, is called after each command that Document has run without -f json.
	After func(command string)
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

// shell runs a line of a document in a shell, and returns the output. If the line fails, the test fails. The standard error follows the output if with is set.
func (c *Client) shell(t *testing.T, line string, with bool) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "sh", "-euc", line)
	cmd.Env, cmd.Stdout, cmd.Stderr = c.Env, &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s%s", line, err, &out, &errs)
	}
	if with {
		return out.String() + errs.String()
	}
	return out.String()
}

// printing matches the commands that print a result.
var printing = regexp.MustCompile(`(^| )(list|show|create|rebuild|add fixed ip)( |$)`)

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

// Document runs the commands in a document's first code block with the language. Each line is one command in a shell. The keys of
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
	c.Commands(t, strings.Split(strings.TrimSpace(block[1]), "\n"), wants)
}

// Commands is like Document, with the lines themselves.
func (c *Client) Commands(t *testing.T, lines []string, wants map[string]string) {
	t.Helper()
	seen := map[string]bool{}
	for _, line := range lines {
		_, command, _ := strings.Cut(line, " ")
		seen[command] = true
		c.Before()
		if out := c.line(t, line, command); !strings.Contains(out, wants[command]) {
			t.Errorf("%s printed %s, want %s", line, out, wants[command])
		}
	}
	for command := range wants {
		if !seen[command] {
			t.Errorf("no line has the command %s", command)
		}
	}
}

// line runs a line of a document, with -f json if the command prints a result, and returns the output.
func (c *Client) line(t *testing.T, line, command string) string {
	t.Helper()
	words := strings.Split(line, " ")
	for i, word := range words {
		words[i] = cmp.Or(c.Values[word], word)
	}
	line = strings.Join(words, " ")
	if c.JSON == nil || !printing.MatchString(command) || c.Plain[command] != "" {
		out := c.shell(t, line, true)
		if c.After != nil {
			c.After(command)
		}
		return out
	}
	out := c.shell(t, line+" -f json", false)
	var result any
	// With --wait, a command may print a word such as Complete before the result.
	if err := json.Unmarshal([]byte(out[max(strings.IndexAny(out, "{["), 0):]), &result); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	c.JSON(command, result)
	return out
}
