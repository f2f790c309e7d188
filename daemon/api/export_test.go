package api

import "strings"

// Route is a path of the API, for the tests of its description.
type Route struct{ Method, Path, Role string }

// Routes are all paths but the one for what does not exist.
func Routes() (all []Route) {
	for _, r := range (&api{}).routes() {
		if r.path != "/" {
			all = append(all, Route{r.method, strings.TrimSuffix(r.path, "{$}"), string(r.role)})
		}
	}
	return all
}

// Description is openapi.yaml.
func Description() []byte { return openapi }
