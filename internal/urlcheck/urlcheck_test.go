package urlcheck_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/urlcheck"
)

// TestCheckText: a URL needs a host, and a port that exists, if it has one.
func TestCheckText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"http://a": "", "http://a/b": "", "http://a:1": "", "https://a:65535/v3": "", "https://[::1]:5000/": "", "https://[::1]": "", "ws://a:0080/": "",
		"http://a:65536":                      `"http://a:65536": the port 65536 is not between 1 and 65535: correct the port, or leave it out`,
		"http://[::1]:70000/v3":               "the port 70000 is not",
		"http://a:0":                          "the port 0 is not",
		"http://a:18446744073709551617":       "the port 18446744073709551617 is not",
		"http://a:-1":                         "is not a URL",
		"http://a:x":                          "is not a URL",
		"http://":                             "has no host",
		"http://:80/v3":                       "has no host",
		"a:5000":                              "has no host",
		"":                                    "has no host",
		"http://a:" + strings.Repeat("9", 99): "the port " + strings.Repeat("9", 60) + " is not",
	} {
		if err := urlcheck.CheckText(text); (err == nil) != (want == "") || err != nil && (fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestCheckPort: the error has no part of a password.
func TestCheckPort(t *testing.T) {
	t.Parallel()
	u, err := url.Parse("amqp://u:hunter2@a:65536/")
	if err != nil {
		t.Fatal(err)
	}
	if err := urlcheck.CheckPort(u); fault.CodeOf(err) != fault.Invalid || strings.Contains(fmt.Sprint(err), "hunter2") {
		t.Errorf("%v, want Invalid without the password", err)
	}
}
