// Package urlcheck checks the parts of URLs that url.Parse accepts, and with which no URL can work.
package urlcheck

import (
	"net/url"
	"strconv"

	"github.com/armature-go/armature/fault"
)

// Escapes says how characters with a meaning in a URL are written in a user name or a password.
const Escapes = "in a user name or password, write %40 for @, %2F for /, %3A for :, %3F for ?, %23 for # and %25 for %"

// CheckText returns Invalid if a text is not a URL, or if the URL has no host or a port that does not exist. The error names the text: a URL with
// a password needs [CheckPort].
func CheckText(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fault.New(fault.Invalid, "%q is not a URL", text)
	case u.Hostname() == "":
		return fault.New(fault.Invalid, "%q has no host", text)
	}
	if err := CheckPort(u); err != nil {
		return fault.New(fault.Invalid, "%q: %w", text, err)
	}
	return nil
}

// CheckPort returns Invalid if a URL has a port that is not between 1 and 65535. A URL without a port is not an error. The error names only the
// port.
func CheckPort(u *url.URL) error {
	port := u.Port()
	if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || n == 0) {
		return fault.New(fault.Invalid, "the port %.60s is not between 1 and 65535: correct the port, or leave it out", port)
	}
	return nil
}
