// Package broker has what the buses over a broker share: the check of URLs, URLs without passwords for logs, and the loop that
// sends a message again.
package broker

import (
	"net/url"
	"slices"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/urlcheck"
)

// CheckURLs returns Invalid unless urls has at least one URL, and each URL has one of the schemes, a host, no parameters and no
// fragment. The error names the URL, without its password, and says what is wrong.
func CheckURLs(urls []string, schemes ...string) error {
	if len(urls) == 0 {
		return fault.New(fault.Invalid, "no URL of a broker is given: set at least one")
	}
	for i, raw := range urls {
		u, err := url.Parse(raw)
		switch {
		case err != nil:
			return fault.New(fault.Invalid, "URL %d of %d cannot be read: %s", i+1, len(urls), urlcheck.Escapes)
		case !slices.Contains(schemes, u.Scheme):
			return fault.New(fault.Invalid, "URL %d of %d: scheme %q is not %s in %s", i+1, len(urls), u.Scheme, strings.Join(schemes, " or "), u.Redacted())
		case u.Hostname() == "":
			return fault.New(fault.Invalid, "URL %d of %d: no host in %s", i+1, len(urls), u.Redacted())
		case urlcheck.CheckPort(u) != nil:
			return fault.New(fault.Invalid, "URL %d of %d: %w in %s", i+1, len(urls), urlcheck.CheckPort(u), u.Redacted())
		case u.Fragment != "":
			return fault.New(fault.Invalid, "URL %d of %d has a fragment; write a # in the password as %%23", i+1, len(urls))
		case u.RawQuery != "":
			name, _, _ := strings.Cut(u.RawQuery, "=")
			return fault.New(fault.Invalid, "URL %d of %d: unknown parameter %.60q", i+1, len(urls), name)
		}
	}
	return nil
}

// Redacted joins the URLs, without their passwords, into one text. A URL that cannot be parsed becomes empty.
func Redacted(urls ...string) string {
	out := make([]string, len(urls))
	for i, raw := range urls {
		if u, err := url.Parse(raw); err == nil {
			out[i] = u.Redacted()
		}
	}
	return strings.Join(out, ", ")
}
