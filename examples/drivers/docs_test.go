// Package drivers_test tests the code in the guide for vendors.
package drivers_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: each block of code in docs/writing-a-driver.md is a part of the code of a tested driver.
func TestDocs(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/writing-a-driver.md")
	if err != nil {
		t.Fatal(err)
	}
	code := map[string]string{}
	for lang, files := range map[string][]string{
		"go":     {"acme/acme.go", "acme/acme_test.go", "acme/armature-compute-acme/main.go", "fake/fake.go", "../nova-mini/compute/driver.go"},
		"python": {"python/apex/driver.py"},
	} {
		for _, f := range files {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			code[lang] += string(raw)
		}
	}
	n := map[string]int{}
	for _, b := range regexp.MustCompile("(?s)```(go|python)\n(.*?)```").FindAllStringSubmatch(string(guide), -1) {
		n[b[1]]++
		if !strings.Contains(code[b[1]], b[2]) {
			t.Errorf("no driver has this block:\n%s", b[2])
		}
	}
	if n["go"] < 5 || n["python"] < 4 {
		t.Errorf("the guide has these numbers of code blocks: %v; want at least 5 of go and 4 of python", n)
	}
}
