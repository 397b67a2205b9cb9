package armature_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const logPage = "docs/logs.md"

// logMethods are the methods of loggers that write a WARN or an ERROR, or at a level that varies, with the index of the argument that is the text. The text of Note has " failed" after it.
var logMethods = map[string]int{"Warn": 0, "Error": 0, "WarnContext": 1, "ErrorContext": 1, "Log": 2, "LogAttrs": 2, "Note": 3}

// logHelpers are functions of this module that log a WARN with their first argument as its text.
var logHelpers = []string{"addWarning", "warnOnceLocked"}

// variableLogs has, for each file with a log text that is not written in the call, the texts. An empty list means that the calls get their texts from logHelpers or from callers that this test
// finds by themselves.
var variableLogs = map[string][]string{
	"db/service.go":                     {"the database schema (...) is at version N, newer than version M of this program, and works with it"}, // the warning of db.Check
	"driver/log.go":                     nil,                                                                                                    // the lines of a driver program
	"internal/outage/outage.go":         nil,                                                                                                    // the callers of Note
	"rpc/natsbus/conn.go":               {"NATS client reported an error", "NATS client dropped messages of a slow subscriber"},
	"service/config/load.go":            nil, // addWarning
	"service/membership/rpccaps/log.go": {"member reports no usable version of an interface, it counts as a member without a report"},
	"service/policy/load.go":            nil, // warnOnceLocked
	"service/signal.go":                 {"reload failed, later parts not reloaded", "reload failed, nothing changed"},
}

// infoLogs are texts whose level varies, and that are no WARN or ERROR.
var infoLogs = []string{"request", "stopped"}

// TestLogs: docs/logs.md has each text that the library and nova-mini log at WARN or ERROR, and no other text.
func TestLogs(t *testing.T) {
	t.Parallel()
	found, variable := map[string]string{}, map[string]bool{}
	for _, dir := range []string{"component", "db", "driver", "examples/nova-mini", "examples/drivers", "internal", "listing", "rpc", "scheduler", "service", "tlsfile"} {
		err := fs.WalkDir(os.DirFS("."), dir, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "testdata" || strings.HasSuffix(d.Name(), "test") || name == "internal/testenv"):
				return fs.SkipDir
			case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".pb.go"):
				return nil
			}
			texts, more, err := logTexts(name, nil)
			for _, text := range texts {
				found[text] = name
			}
			if more {
				variable[name] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range variable {
		texts, ok := variableLogs[name]
		if !ok {
			t.Errorf("%s has a log call whose text is not written in the call: write it there, or add its texts to variableLogs", name)
		}
		for _, text := range texts {
			found[text] = name
			if src := readFile(t, name); name != "db/service.go" && !strings.Contains(src, strconv.Quote(text)) {
				t.Errorf("%s does not have the text %q of variableLogs", name, text)
			}
		}
	}
	for name := range variableLogs {
		if !variable[name] {
			t.Errorf("%s has no log call with a variable text: remove it from variableLogs", name)
		}
	}
	documented := map[string]bool{}
	for line := range strings.Lines(readFile(t, logPage)) {
		cell, _, ok := strings.Cut(strings.TrimPrefix(line, "|"), " | ")
		if !ok || !strings.HasPrefix(line, "| `") {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			if documented[m[1]] {
				t.Errorf("%s has the text %q twice", logPage, m[1])
			}
			documented[m[1]] = true
			if found[m[1]] == "" {
				t.Errorf("%s has the text %q, which no package logs at WARN or ERROR: remove the row", logPage, m[1])
			}
		}
	}
	for text, name := range found {
		if !documented[text] && !slices.Contains(infoLogs, text) {
			t.Errorf("%s logs %q: add a row to %s, which says what the line means and what the operator should do", name, text, logPage)
		}
	}
	if len(found) < 80 {
		t.Errorf("only %d texts were found", len(found))
	}
}

// logTexts returns the texts that a file logs at WARN or ERROR. The result more reports whether the file has a log call whose text is not written in the call. The source is that of the file
// if src is nil.
func logTexts(name string, src any) (texts []string, more bool, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, false, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		text, isLog := logTextOf(call)
		switch {
		case isLog && text == "":
			more = true
		case isLog:
			texts = append(texts, text)
		}
		return true
	})
	return texts, more, nil
}

// logTextOf returns the text of a call that logs at WARN or ERROR, or at a level that varies. The text is empty if it is not written in the call.
func logTextOf(call *ast.CallExpr) (text string, isLog bool) {
	name := ""
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		name = f.Sel.Name
	case *ast.Ident:
		name = f.Name
	}
	at, isMethod := logMethods[name]
	switch {
	case !isMethod && !slices.Contains(logHelpers, name), len(call.Args) <= at:
		return "", false
	case at >= 2:
		if level, ok := call.Args[at-1].(*ast.SelectorExpr); ok && (level.Sel.Name == "LevelInfo" || level.Sel.Name == "LevelDebug") {
			return "", false
		}
	}
	if lit, ok := call.Args[at].(*ast.BasicLit); ok && lit.Kind == token.STRING {
		text, _ = strconv.Unquote(lit.Value) // the parser has accepted the literal
	} else if name == "Error" || !isMethod { // status.Error(code, ...) and others, which log nothing
		return "", false
	}
	if name == "Note" && text != "" {
		text += " failed"
	}
	return text, true
}

// TestLogTexts: the texts of all forms of log calls are found, and those at INFO and of other functions are not.
func TestLogTexts(t *testing.T) {
	t.Parallel()
	for call, want := range map[string]string{
		`log.Warn("lease lost", "id", 1)`:                          "lease lost",
		`s.cfg.Logger.ErrorContext(ctx, "lease lost", "id", 1)`:    "lease lost",
		`cmp.Or(a, b).WarnContext(ctx, "lease lost")`:              "lease lost",
		`log.Log(ctx, level, "lease lost", "id", 1)`:               "lease lost",
		`log.LogAttrs(ctx, slog.LevelWarn, "lease lost")`:          "lease lost",
		`o.Note(ctx, log, slog.LevelWarn, "renewal", err, false)`:  "renewal failed",
		`l.addWarning("lease lost", "id", 1)`:                      "lease lost",
		`log.Error("lease lost", "error", err)`:                    "lease lost",
		`log.Log(ctx, slog.LevelInfo, "lease lost")`:               "",
		`o.Note(ctx, log, slog.LevelDebug, "renewal", err, false)`: "",
		`log.InfoContext(ctx, "lease lost")`:                       "",
		`status.Error(code, "lease lost")`:                         "",
		`math.Log(x)`:                                              "",
		`log.Warn(text, "id", 1)`:                                  "?",
		`log.Log(ctx, level, "lease "+what)`:                       "?",
	} {
		texts, more, err := logTexts("p.go", "package p\n\nfunc f() { "+call+" }\n")
		got := strings.Join(texts, ", ")
		if more {
			got += "?"
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", call, got, err, want)
		}
	}
}
