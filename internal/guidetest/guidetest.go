// Package guidetest keeps guides and tested code together.
package guidetest

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var codeBlock = regexp.MustCompile("(?s)```(?:go|sql)\n(.*?)```")

// Check fails the test if a block of Go or SQL in a document is not, character by character, a part of one of the files. Such a
// block would neither compile nor run in a test. The parameter guide is the path of the document. Check also fails if the document has
// fewer blocks than the parameter least. The paths are relative to the test's package.
func Check(t testing.TB, guide string, least int, files ...string) {
	t.Helper()
	read := func(name string) string {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	var code strings.Builder
	for _, file := range files {
		code.WriteString(read(file))
	}
	blocks := codeBlock.FindAllStringSubmatch(read(guide), -1)
	if len(blocks) < least {
		t.Errorf("%s has %d blocks of Go and SQL, want at least %d", guide, len(blocks), least)
	}
	for _, b := range blocks {
		if !strings.Contains(code.String(), b[1]) {
			t.Errorf("none of the files %v has this block of %s:\n%s", files, guide, b[1])
		}
	}
}
