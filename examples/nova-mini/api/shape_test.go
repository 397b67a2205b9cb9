package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// want is like askAt. It fails the test if the reply has another status, and returns the body.
func (c *cloud) want(status int, version, who, method, path, body string) string {
	c.Helper()
	got, reply := c.askAt(version, who, method, path, body)
	if got != status {
		c.Errorf("%s %s at %s: %d %s, want %d", method, path, version, got, reply, status)
	}
	return reply
}

// sample returns one of Nova's samples of a resource, such as flavors/v2.61/flavor-get-resp.json, with replacements in pairs of an old and a new text. It skips
// the test if the samples are not beside this tree.
func sample(t *testing.T, path string, replacements ...string) string {
	t.Helper()
	file := filepath.Join(samplesRoot, filepath.FromSlash(path))
	raw, err := readSampleFile(file)
	if err != nil {
		t.Skip("shared/nova-api is not beside this tree")
	}
	text := strings.NewReplacer(replacements...).Replace(string(raw))
	knowText(file, text)
	return text
}

// freeKeys has the names of objects whose keys are chosen by users.
var freeKeys = []string{".extra_specs", ".metadata"}

// sameShape fails the test if the keys or the types of values of a reply differ from those of a sample. Each item of a list must be like one of the items of the sample.
func (c *cloud) sameShape(name, sample, reply string) {
	c.Helper()
	useText(sample)
	var want, got any
	if err := json.Unmarshal([]byte(sample), &want); err != nil {
		c.Fatal(err)
	}
	if err := json.Unmarshal([]byte(reply), &got); err != nil {
		c.Fatalf("%s: %v in %s", name, err, reply)
	}
	for _, diff := range shapeDiff("", want, got) {
		c.Errorf("%s: %s; reply: %.600s", name, diff, reply)
	}
}

func shapeDiff(at string, want, got any) (out []string) {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %T, want an object", at, got)}
		}
		if slices.ContainsFunc(freeKeys, func(name string) bool { return strings.HasSuffix(at, name) }) {
			return nil
		}
		for _, key := range slices.Sorted(maps.Keys(w)) {
			if v, ok := g[key]; !ok {
				out = append(out, at+"."+key+" is missing")
			} else {
				out = append(out, shapeDiff(at+"."+key, w[key], v)...)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(g)) {
			if _, ok := w[key]; !ok {
				out = append(out, at+"."+key+" is not in the sample")
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %T, want an array", at, got)}
		}
		if len(w) > 0 && len(g) == 0 {
			return []string{at + " is empty"}
		}
		if len(w) == 0 {
			return nil // the sample does not show the items
		}
		for i, item := range g {
			least := shapeDiff(fmt.Sprintf("%s[%d]", at, i), w[0], item)
			for _, like := range w[1:] {
				if diff := shapeDiff(fmt.Sprintf("%s[%d]", at, i), like, item); len(diff) < len(least) {
					least = diff
				}
			}
			out = append(out, least...)
		}
	default:
		if fmt.Sprintf("%T", want) != fmt.Sprintf("%T", got) && want != nil && got != nil {
			out = []string{fmt.Sprintf("%s is %T, want %T", at, got, want)}
		}
	}
	return out
}
