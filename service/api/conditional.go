package api

import (
	"net/http"
	"strings"
)

// isUnchanged reports whether the client already has the representation with the reply's ETag, so that the reply can be 304. The
// comparison is weak, see RFC 9110, section 13.1.2.
func isUnchanged(r *http.Request, reply http.Header, status int) bool {
	tag := strings.TrimPrefix(reply.Get("Etag"), "W/")
	if tag == "" || status != http.StatusOK || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	for _, line := range r.Header.Values("If-None-Match") {
		for item := range strings.SplitSeq(line, ",") {
			if item = strings.TrimSpace(item); item == "*" || strings.TrimPrefix(item, "W/") == tag {
				return true
			}
		}
	}
	return false
}
