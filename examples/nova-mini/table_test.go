package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// rowOnly has the actions whose request has no content and only begins an operation: their row in compute.Actions is enough. DELETE of a server begins soft_delete.
var rowOnly = strings.Fields("start stop confirm_resize revert_resize pause unpause suspend resume unrescue shelve_offload restore soft_delete")

// TestActionTable: each action has one row in the table compute.Actions. Package api names an action in exactly one Go file, which has its handler, and an action of rowOnly in none. If the compute
// service does the action, package worker names it in exactly one Go file. So a new action is a change in one place of each package.
func TestActionTable(t *testing.T) {
	t.Parallel()
	names := constants(t)
	first := map[string]compute.Action{} // the action that handles the requests with a name
	for _, info := range slices.Backward(compute.Actions) {
		first[info.Request] = info.Action
	}
	delete(first, "") // requests of another kind begin these actions
	for _, name := range rowOnly {
		if names[compute.Action(name)] == "" {
			t.Errorf("rowOnly has %s, which is not an action", name)
		}
	}
	for _, info := range compute.Actions {
		if n := len(slices.DeleteFunc(slices.Clone(compute.Actions), func(i compute.ActionInfo) bool { return i.Action != info.Action })); n != 1 {
			t.Errorf("%s has %d rows", info.Action, n)
		}
		if _, has := store.Kinds[info.Action]; has != (info.Task != "") {
			t.Errorf("%s: has a kind of operation: %v, task %q", info.Action, has, info.Task)
		}
		if info.Rule == "" || info.Summary == "" || info.Request == "" && info.Task == "" && info.Event == "" || info.Task != "" && (len(info.From) == 0 || info.Since.Major == 0) {
			t.Errorf("%s: the row is not complete: %+v", info.Action, info)
		}
		words := []string{"compute." + names[info.Action], `"` + string(info.Action) + `"`}
		if info.Request != "" {
			words = append(words, `"`+info.Request+`"`)
		}
		want := 1
		if slices.Contains(rowOnly, string(info.Action)) {
			want = 0
		}
		if api := filesWith(t, "api", words); len(api) != want {
			t.Errorf("package api names %s in %q, want %d files", info.Action, api, want)
		}
		key := "compute." + names[info.Action] + ":" // in the map of its handler
		if handler := filesWith(t, "api", []string{key}); want == 1 && first[info.Request] == info.Action && len(handler) != 1 {
			t.Errorf("package api has a handler of %s in %q, want one file", info.Action, handler)
		}
		want = 0
		if info.Since.Major > 0 {
			want = 1
		}
		if worker := filesWith(t, "worker", words[:1]); len(worker) != want {
			t.Errorf("package worker names %s in %q, want %d files", info.Action, worker, want)
		}
	}
}

// constants returns the names of the constants of actions.
func constants(t *testing.T) map[compute.Action]string {
	t.Helper()
	text, err := os.ReadFile("compute/actions.go")
	if err != nil {
		t.Fatal(err)
	}
	out := map[compute.Action]string{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "Action" && f[2] == "=" {
			out[compute.Action(strings.Trim(f[3], `"`))] = f[0]
		}
	}
	return out
}

// filesWith returns the Go files of a directory, without tests, that have one of the words.
func filesWith(t *testing.T, dir string, words []string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") || f == "api/versions.go" || f == "api/usage.go" { // the table of microversions has names of resources, and usage.go has the query parameter start
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(words, func(w string) bool { return hasWord(string(text), w) }) {
			out = append(out, f)
		}
	}
	return out
}

// hasWord reports whether a text has a word, and not only as the beginning of a longer word.
func hasWord(text, word string) bool {
	for {
		i := strings.Index(text, word)
		if i < 0 {
			return false
		}
		text = text[i+len(word):]
		if text == "" || !strings.Contains("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", text[:1]) {
			return true
		}
	}
}
