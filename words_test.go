package armature_test

import (
	"fmt"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// replacedWords are patterns that comments, texts in code, and documents must not have, each with the words to write
// instead. They are the worst of those in docs/glossary.md.
var replacedWords = []struct {
	bad     *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`(?i)\b(nobody|somebody|whoever|whomever)\b`), "the client, the worker, another process"},
	{regexp.MustCompile(`(?i)\bthat there (is|are|was|were)\b`), "that exist; or say what is missing"},
	{regexp.MustCompile(`(?i)\b(that|which|it|there) is none\b|\bis none is\b`), "an empty result; does not exist"},
	{regexp.MustCompile(`(?i)\ball the same\b`), "still, or nothing"},
	{regexp.MustCompile(`(?i)\btime-outs?\b`), "timeout"},
	{regexp.MustCompile(`(?i)\bsigns? of life\b|\bbeats?\b(?:[^=]|$)|\bpulse\b`), "heartbeat"}, // "beat=" is on the wire
	{regexp.MustCompile(`\b[Cc]ancell(ed|ing)\b`), "canceled, canceling"},                      // CANCELLED is a code of gRPC
	{regexp.MustCompile(`(?i)\bpatience\b`), "timeout"},
	{regexp.MustCompile(`(?i)\bat (its|the|one's) door\b`), "slot, prefetch"},
	{regexp.MustCompile(`(?i)\b(which|that|it|he) is no( [^l]| l[^o]|$)`), "is not a, does not"}, // "is no longer" is fine
	{regexp.MustCompile(`(?i)\bturn(s|ed|ing)? (it |them )?away\b`), "reject"},
	{regexp.MustCompile(`(?i)\blotter(y|ies)\b`), "weighted random"},
	{regexp.MustCompile(`(?i)\bbur(y|ied|ies)\b`), "dead-letter"},
	{regexp.MustCompile(`(?i)\bstrangers?\b`), "orphan"},
}

// logText matches the call of a logger whose text begins with "a ". Such a text is a sentence and not an event. The text may be on
// the next line.
var logText = regexp.MustCompile(`\.(?:Debug|Info|Warn|Error|Log)(?:Context|Attrs)?\(\s*(?:[\w.()]+,\s*)*"an? `)

// quoted matches a name in a document, between backquotes.
var quoted = regexp.MustCompile("`[^`]*`")

// wordsFile has, for each folder, the number of lines that match replacedWords or logText. The lines are older than the
// glossary, and the numbers may only fall.
const wordsFile = "testdata/words.txt"

// TestWords: no new line has one of the words that the glossary replaces. ARMATURE_UPDATE=1 writes the lower
// numbers of folders in which such lines were corrected.
func TestWords(t *testing.T) {
	t.Parallel()
	hits := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata" || path == "bin"):
			return fs.SkipDir
		case d.IsDir() || path == "words_test.go" || path == "docs/glossary.md" || path == "CHANGELOG.md" || strings.HasSuffix(path, ".pb.go"):
			return nil
		}
		var found []string
		switch filepath.Ext(path) {
		case ".go":
			found, err = goHits(path)
		case ".md", ".proto":
			found, err = textHits(path)
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		hits[dir] = append(hits[dir], found...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	was := map[string]int{}
	raw, err := os.ReadFile(wordsFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var dir string
		var n int
		if _, err := fmt.Sscan(line, &dir, &n); err != nil {
			t.Fatalf("%s: %q: %v", wordsFile, line, err)
		}
		was[dir] = n
	}
	var now []string
	for dir, found := range hits {
		n := min(len(found), was[dir])
		if len(found) > n {
			t.Errorf("%s has %d lines with words that the glossary replaces, %d of them new:\n%s", dir, len(found), len(found)-n, strings.Join(found, "\n"))
		}
		if n > 0 {
			now = append(now, fmt.Sprintf("%s %d\n", dir, n))
		}
	}
	slices.Sort(now)
	if text := strings.Join(now, ""); text != string(raw) {
		if os.Getenv("ARMATURE_UPDATE") == "" {
			t.Errorf("some folders have fewer lines with such words: run this test with ARMATURE_UPDATE=1, and commit %s", wordsFile)
		} else if err := os.WriteFile(wordsFile, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
}

// goHits returns the findings in the comments and texts of a Go file.
func goHits(path string) (found []string, err error) {
	src, err := os.ReadFile(path)
	return goHitsIn(path, src), err
}

// goHitsIn is goHits for the text of a file.
func goHitsIn(path string, src []byte) (found []string) {
	set := token.NewFileSet()
	file := set.AddFile(path, set.Base(), len(src))
	var s scanner.Scanner
	s.Init(file, src, nil, scanner.ScanComments)
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			break
		}
		if tok != token.COMMENT && (tok != token.STRING || !strings.Contains(lit, " ")) { // a text of one word is a name, such as a name on the wire
			continue
		}
		for i, line := range strings.Split(lit, "\n") {
			found = append(found, judgeWords(fmt.Sprintf("%s:%d", path, file.Line(pos)+i), line)...)
		}
	}
	if strings.HasSuffix(path, "_test.go") { // there, Error is a method of testing.T
		return found
	}
	for _, at := range logText.FindAllIndex(src, -1) {
		found = append(found, fmt.Sprintf("%s:%d: a log line begins with \"a \": write an event, such as \"lease lost\"", path, file.Line(file.Pos(at[0]))))
	}
	return found
}

// TestLogText: a log text that is a sentence is found, even on the line after the call.
func TestLogText(t *testing.T) {
	t.Parallel()
	for src, want := range map[string]string{
		"package p\n\nfunc f() { log.Warn(\"a lease was lost\", \"id\", 1) }\n":                               "p.go:3",
		"package p\n\nfunc f() {\n\tlog.WarnContext(ctx,\n\t\t\"a lease was lost\", \"id\", 1)\n}\n":          "p.go:4",
		"package p\n\nfunc f() {\n\tlog.Info(\n\t\t\"an operation ended\",\n\t)\n}\n":                         "p.go:4",
		"package p\n\nfunc f() { log.Log(ctx, slog.LevelInfo, \"a lease was lost\") }\n":                      "p.go:3",
		"package p\n\nfunc f() { log.Warn(\"lease lost\", \"id\", \"a b\"); g(ctx, \"a c\"); log.Info(x) }\n": "",
	} {
		found := goHitsIn("p.go", []byte(src))
		if got := strings.Join(found, "\n"); len(found) > 1 || !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%s\nfound %q, want %q", src, got, want)
		}
	}
}

// textHits returns the findings in those lines of a document that are not code.
func textHits(path string) (found []string, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	code := false
	for i, line := range strings.Split(string(raw), "\n") {
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		if code {
			continue
		}
		found = append(found, judgeWords(fmt.Sprintf("%s:%d", path, i+1), quoted.ReplaceAllString(line, "``"))...)
	}
	return found, nil
}

func judgeWords(where, line string) (found []string) {
	for _, w := range replacedWords {
		if m := w.bad.FindString(line); m != "" {
			found = append(found, fmt.Sprintf("%s: %q: write %s", where, m, w.instead))
		}
	}
	return found
}
