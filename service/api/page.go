package api

import (
	"fmt"
	"net/http"

	"github.com/armature-go/armature/listing"
)

// wrongQuery returns the error for a query parameter with a wrong value. The parameter detail says what is wrong.
func wrongQuery(name, value, detail string) error {
	return fieldError(name, fmt.Sprintf("Invalid input for query parameters %s. Value: %s. %s", shortenText(name), shortenText(value), detail))
}

// Link is a link in OpenStack's form.
type Link struct {
	Rel  string `json:"rel" enum:"self,bookmark,next,previous,describedby,alternate,collection"`
	Href string `json:"href" format:"uri"`
	Type string `json:"type,omitempty"`
}

// NextPage returns the link to the next page of a route with a List. The parameter got is the number of items on this page, and last is
// the id of the last item. The result is nil if this page is empty or has fewer items than the limit.
func (r *Request[B]) NextPage(got int, last string) []Link {
	return nextPage(r.Request, &r.List, got, last)
}

func nextPage(r *http.Request, q *listing.Query, got int, last string) []Link {
	if got < q.Limit || got == 0 {
		return nil
	}
	values := r.URL.Query()
	values.Set("marker", last)
	return []Link{{Rel: "next", Href: Base(r) + RequestPath(r) + "?" + values.Encode()}}
}
