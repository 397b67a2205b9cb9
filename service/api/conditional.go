package api

import (
	"net/http"
	"strings"

	"github.com/armature-go/armature/fault"
)

// Match returns an error with status 412 if the request's conditions do not allow it to change an object whose
// current entity tag is tag, such as `"7"`. An object that does not exist has the tag "". A request with If-Match
// requires that tag is one of those that it lists; a request with If-None-Match: * requires that the object
// does not exist. See RFC 9110, section 13.
func Match(r *http.Request, tag string) error {
	if want := r.Header.Values("If-Match"); len(want) > 0 && !isListed(want, tag, true) {
		return WithStatus(http.StatusPreconditionFailed, fault.New(fault.Precondition, "The object was changed meanwhile: its entity tag is %s.", tagName(tag)))
	}
	if none := r.Header.Values("If-None-Match"); len(none) > 0 && isListed(none, tag, false) {
		return WithStatus(http.StatusPreconditionFailed, fault.New(fault.Precondition, "The object exists already: its entity tag is %s.", tagName(tag)))
	}
	return nil
}

// tagName returns a tag for an error.
func tagName(tag string) string {
	if tag == "" {
		return "none, because the object does not exist"
	}
	return tag
}

// isListed reports whether tag is in a list of entity tags. In a strong comparison a weak tag is never equal to
// another tag.
func isListed(lines []string, tag string, strong bool) bool {
	if tag == "" {
		return false
	}
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			switch item = strings.TrimSpace(item); {
			case item == "*":
				return true
			case strong && (strings.HasPrefix(item, "W/") || strings.HasPrefix(tag, "W/")):
			case strings.TrimPrefix(item, "W/") == strings.TrimPrefix(tag, "W/"):
				return true
			}
		}
	}
	return false
}

// isUnchanged reports whether the client already has the representation with the reply's ETag, so that 304 is enough.
func isUnchanged(r *http.Request, reply http.Header, status int) bool {
	none := r.Header.Values("If-None-Match")
	if len(none) == 0 || status != http.StatusOK || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	return isListed(none, reply.Get("Etag"), false)
}
