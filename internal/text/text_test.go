package text_test

import (
	"os/exec"
	"testing"

	"github.com/armature-go/armature/internal/text"
)

// TestShellWord: the shell reads a quoted word as one word, unchanged. A plain word has no quotes.
func TestShellWord(t *testing.T) {
	t.Parallel()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err) // a shell is on every machine that the commands are for
	}
	for word, want := range map[string]string{
		"/etc/nova-mini/nova.conf": "/etc/nova-mini/nova.conf", "h1.example.org": "h1.example.org", "a=b,c:1%2+3@x_y": "a=b,c:1%2+3@x_y",
		"": "''", "/my files/nova.conf": "'/my files/nova.conf'", "it's": `'it'\''s'`, "$HOME": "'$HOME'", "a\nb": "'a\nb'", `a"b\c`: `'a"b\c'`, "ü": "'ü'", "~": "'~'", "a;b&c|d*?(x)": "'a;b&c|d*?(x)'",
	} {
		got := text.ShellWord(word)
		if got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
		out, err := exec.CommandContext(t.Context(), sh, "-c", "printf '[%s]' "+got).Output()
		if err != nil || string(out) != "["+word+"]" {
			t.Errorf("the shell reads %s as %q, %v; want %q", got, out, err, word)
		}
	}
}
